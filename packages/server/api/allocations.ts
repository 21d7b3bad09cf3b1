// Allocations: list, look at (and wait for a change), logs, attach, exec.
import type { LogsRequest } from '@cloister/link/messages.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { isEnded } from '@cloister/model/job.ts';
import { CHANNEL, type LogLine } from '@cloister/model/stream.ts';
import { serveAttach, serveExec, whenStarted } from '../attach.ts';
import { type Call, findAllocation, findJob, type Handlers, type Parts, showAllocation } from './call.ts';

const LONG_POLL_MS = 30_000;

type Names = 'listAllocations' | 'getAllocation' | 'logs' | 'attach' | 'exec';

export function allocationHandlers(parts: Parts): Handlers<Names> {
  const { cluster, sessions, streams } = parts;
  return {
    listAllocations: ({ caller, query }) => {
      const { state } = cluster.follower;
      const jobIds = query.job
        ? [findJob(parts, caller, query.job).record.id]
        : [...(state.jobIdsByTenant.get(caller.tenant.id) ?? [])];
      const held = jobIds.flatMap((jobId) => state.allocationsOfJob(jobId));
      held.sort((a, b) => b.record.createdAt - a.record.createdAt || a.record.index - b.record.index);
      return { allocations: held.map((one) => showAllocation(parts, one)) };
    },
    getAllocation: async ({ caller, params, query, signal }) => {
      const held = findAllocation(parts, caller, params.allocation);
      const { id, jobId } = held.record;
      const { waitVersion } = query;
      if (waitVersion !== undefined) {
        const isNewer = () => {
          const now = cluster.follower.state.allocations.get(id);
          return !now || showAllocation(parts, now).version > waitVersion ? true : undefined;
        };
        const leave = streams.enter(caller.tenant.id);
        try {
          await cluster.follower.until(isNewer, {
            concerns: (change) => change.allocations.has(id) || change.jobs.has(jobId),
            timeoutMs: LONG_POLL_MS,
            signal,
          });
        } finally {
          leave();
        }
      }
      return showAllocation(parts, findAllocation(parts, caller, id));
    },
    logs: (call) => {
      findAllocation(parts, call.caller, call.params.allocation);
      return readLogs(parts, call);
    },
    attach: ({ caller, params, query }) => {
      const { id, jobId } = findAllocation(parts, caller, params.allocation).record;
      streams.requireRoom(caller.tenant.id); // told as an error of the request, while that can still be had
      return async (socket) => {
        socket.once('close', streams.enter(caller.tenant.id, jobId));
        await serveAttach(parts, id, query.stdin === true, socket);
      };
    },
    exec: ({ caller, params }) => {
      const { id, jobId, nodeId, state } = findAllocation(parts, caller, params.allocation).record;
      if (state !== 'running' || !nodeId) {
        throw new CloisterError(
          'state.wrong',
          `Could not run anything in the allocation: it is ${state}, not running.`,
        );
      }
      parts.fleet.requireReady(nodeId);
      streams.requireRoom(caller.tenant.id); // told as an error of the request, while that can still be had
      return async (socket) => {
        socket.once('close', streams.enter(caller.tenant.id, jobId));
        await serveExec({ cluster, sessions, fleet: parts.fleet }, { allocationId: id, nodeId }, socket);
      };
    },
  };
}

async function* readLogs(
  parts: Parts,
  { caller, params, query, signal }: Call<'logs'>,
): AsyncGenerator<LogLine> {
  const { id, state } = findAllocation(parts, caller, params.allocation).record;
  const follow = query.follow === true;
  if (!follow && state !== 'running' && !isEnded(state)) return;
  const record = await whenStarted(parts.cluster, id, signal);
  if (!record?.nodeId) return; // it never had a machine
  const logs: LogsRequest = { allocationId: id, follow, ...pick(query) };
  const frames = await parts.sessions.openStream(record.nodeId, { purpose: 'logs', logs });
  const stop = (): void => frames.cancel();
  signal.addEventListener('abort', stop);
  if (signal.aborted) stop();
  try {
    for await (const frame of frames) {
      if (frame.frame !== 'output') continue;
      const { channel, atMs, data } = frame.output;
      yield {
        at: atMs,
        stream: channel === CHANNEL.stderr ? 'stderr' : 'stdout',
        data: data.toString('base64'),
      };
    }
  } finally {
    signal.removeEventListener('abort', stop);
    frames.cancel();
  }
}

function pick({ tailBytes, tailLines, sinceMs }: Call<'logs'>['query']): Partial<LogsRequest> {
  return {
    ...(tailBytes === undefined ? {} : { tailBytes }),
    ...(tailLines === undefined ? {} : { tailLines }),
    ...(sinceMs === undefined ? {} : { sinceMs }),
  };
}
