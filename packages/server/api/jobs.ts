// Jobs: make, list, look at, end, signal, remove.
import { CloisterError } from '@cloister/model/errors.ts';
import type { JobId } from '@cloister/model/ids.ts';
import { createJob, endJob, removeJob } from '../jobs.ts';
import { type Call, findJob, type Handlers, type Parts, showJob } from './call.ts';

/** A forced removal waits so long for the kill before it says that it is on its way. */
const REMOVE_TIMEOUT_MS = 60_000;
const SIGNALS_AT_ONCE = 64;

type Names = 'createJob' | 'listJobs' | 'getJob' | 'stopJob' | 'killJob' | 'signalJob' | 'removeJob';

export function jobHandlers(parts: Parts): Handlers<Names> {
  const { cluster } = parts;
  const show = (jobId: JobId) => {
    const job = cluster.follower.state.jobs.get(jobId);
    if (!job) throw new CloisterError('not-found', `There is no job "${jobId}".`);
    return showJob(parts, job);
  };
  return {
    createJob: async ({ caller, body }) => show(await createJob(cluster, caller.tenant.id, body)),
    listJobs: ({ caller, query }) => {
      const { state } = cluster.follower;
      const jobs = [...(state.jobIdsByTenant.get(caller.tenant.id) ?? [])].flatMap(
        (id) => state.jobs.get(id) ?? [],
      );
      const wanted = jobs.filter(({ record }) => query.state === undefined || record.state === query.state);
      wanted.sort((a, b) => b.record.createdAt - a.record.createdAt);
      return { jobs: wanted.map((job) => showJob(parts, job)) };
    },
    getJob: ({ caller, params }) => showJob(parts, findJob(parts, caller, params.job)),
    stopJob: async ({ caller, params, body }) => {
      const { id } = findJob(parts, caller, params.job).record;
      await endJob(cluster, id, 'stop', body.graceMs);
      return show(id);
    },
    killJob: async ({ caller, params }) => {
      const { id } = findJob(parts, caller, params.job).record;
      await endJob(cluster, id, 'kill');
      return show(id);
    },
    signalJob: (call) => signalJob(parts, call),
    removeJob: async ({ caller, params, query, signal }) => {
      const { id } = findJob(parts, caller, params.job).record;
      await removeJob(cluster, id, query.force === true);
      const gone = await cluster.follower.until((state) => (state.jobs.has(id) ? undefined : true), {
        concerns: (change) => change.jobs.has(id),
        timeoutMs: REMOVE_TIMEOUT_MS,
        signal,
      });
      if (!gone)
        throw new CloisterError(
          'unavailable',
          'The job is being killed; it is removed as soon as that is done.',
        );
      return undefined;
    },
  };
}

async function signalJob(parts: Parts, { caller, params, body }: Call<'signalJob'>): Promise<undefined> {
  const { record: job } = findJob(parts, caller, params.job);
  const running = parts.cluster.follower.state
    .allocationsOfJob(job.id)
    .filter(({ record }) => record.state === 'running');
  if (running.length === 0) {
    throw new CloisterError('state.wrong', `Could not signal ${job.name}: no instance of it is running.`);
  }
  for (let start = 0; start < running.length; start += SIGNALS_AT_ONCE) {
    const sent = running.slice(start, start + SIGNALS_AT_ONCE).map(async ({ record }) => {
      if (record.nodeId) await parts.sessions.signal(record.nodeId, record.id, body.signal);
    });
    const failed = (await Promise.allSettled(sent)).find((result) => result.status === 'rejected');
    if (failed) throw failed.reason;
  }
  return undefined;
}
