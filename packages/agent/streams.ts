// Bulk streams that the control plane asks for: logs, attach, exec, pulls. Each ends with its own connection; what it
// is about goes on.

import type { ImageStore } from '@cloister/image/images.ts';
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import type { LinkSession } from '@cloister/link/clientLink.ts';
import { parseJson } from '@cloister/link/json.ts';
import type { LinkStream } from '@cloister/link/linkStream.ts';
import type { AllocationStatus, LogsRequest, OpenStream, StreamFrame } from '@cloister/link/messages.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { PullProgress } from '@cloister/model/image.ts';
import { ExecSpecSchema, type StreamControl } from '@cloister/model/stream.ts';
import type { Sandbox, SandboxState } from '@cloister/sandbox/sandbox.ts';
import { InputTurns, takeInput } from './input.ts';
import { readLogs } from './logs.ts';

type Frames = LinkStream<StreamFrame, StreamFrame>;

const turns = new InputTurns<Sandbox>();

export interface StreamParts {
  readonly images: Pick<ImageStore, 'pull'>;
  readonly sandboxOf: (allocationId: string) => Sandbox | undefined;
  /** What was last told of it. */
  readonly statusOf: (allocationId: string) => AllocationStatus | undefined;
  readonly clock: Clock;
  readonly nodeId: string;
  readonly logger: Logger;
  readonly onImages: () => void;
}

/** Serves one, to its end. Never throws. */
export async function serveStream(
  parts: StreamParts,
  session: LinkSession,
  asked: OpenStream,
): Promise<void> {
  let frames: Frames | undefined;
  try {
    frames = await session.openStream(asked.streamId);
    await serve(parts, frames, asked);
  } catch (error) {
    await frames?.write(control(failed(error))).catch(() => {}); // the other side has left
    parts.logger.debug({ purpose: asked.purpose, error: describeError(error) }, 'a stream broke');
  } finally {
    frames?.end();
  }
}

async function serve(parts: StreamParts, frames: Frames, asked: OpenStream): Promise<void> {
  switch (asked.purpose) {
    case 'logs':
      return await serveLogs(parts, frames, asked.logs);
    case 'attach':
      return await serveAttach(parts, frames, asked.attach);
    case 'exec':
      return await serveExec(parts, frames, asked.exec);
    case 'pull':
      return await servePull(parts, frames, asked.pull.reference);
  }
}

const control = (message: StreamControl): StreamFrame => ({
  frame: 'controlJson',
  controlJson: JSON.stringify(message),
});

function failed(error: unknown): StreamControl {
  const code = error instanceof CloisterError ? error.code : 'internal';
  return { type: 'error', reason: { code, message: describeError(error) } };
}

async function serveLogs(parts: StreamParts, frames: Frames, asked: LogsRequest): Promise<void> {
  const sandbox = parts.sandboxOf(asked.allocationId);
  if (!sandbox) return; // it never had output
  const gone = goneSignal(frames);
  for await (const { fd, atMs, bytes } of readLogs(sandbox.output, asked, gone))
    await frames.write({ frame: 'output', output: { channel: fd, atMs, data: bytes } });
}

async function serveAttach(
  parts: StreamParts,
  frames: Frames,
  asked: { readonly allocationId: string; readonly stdin: boolean },
): Promise<void> {
  const sandbox = parts.sandboxOf(asked.allocationId);
  if (!sandbox) return await frames.write(control(endWithoutSandbox(parts.statusOf(asked.allocationId))));
  const gone = goneSignal(frames);
  await frames.write(control({ type: 'started' }));
  void takeInput(frames, {
    writeStdin: async (bytes) => {
      if (asked.stdin) await turns.take(sandbox, () => sandbox.writeStdin(bytes), gone);
    },
    endStdin: () => {
      if (asked.stdin) sandbox.endStdin();
    },
    signal: (signal) => sandbox.signal(signal),
    resize: (rows, columns) => sandbox.resize(rows, columns),
  });
  // From the first byte, always: whoever attaches again skips what it has.
  for await (const record of sandbox.output.read({ follow: true, pin: true, signal: gone })) {
    if ('lostBytes' in record) await frames.write(control({ type: 'gap', bytes: record.lostBytes }));
    else {
      const { fd, atMs, bytes } = record;
      await frames.write({ frame: 'output', output: { channel: fd, atMs, data: bytes } });
    }
  }
  if (gone.aborted) return;
  await sandbox.ended;
  await frames.write(control(endOf(sandbox.state)));
}

/** One that ended before its image was here. */
function endWithoutSandbox(status: AllocationStatus | undefined): StreamControl {
  if (status?.state === 'exited') {
    const { exitCode = 0, signal, oomKilled } = status;
    return exitOf({ exitCode, oomKilled, ...(signal === undefined ? {} : { signal }) });
  }
  if (status?.state === 'failed')
    return { type: 'error', reason: { code: status.reasonCode, message: status.reasonMessage } };
  return failed(new CloisterError('state.wrong', 'The allocation has no machine on its node.'));
}

function endOf(state: SandboxState): StreamControl {
  if (state.phase === 'failed') return { type: 'error', reason: state.reason };
  if (state.phase !== 'exited') return failed(new CloisterError('unavailable', 'The agent is closing.'));
  return exitOf(state);
}

async function serveExec(
  parts: StreamParts,
  frames: Frames,
  asked: { readonly allocationId: string; readonly specJson: string },
): Promise<void> {
  const sandbox = parts.sandboxOf(asked.allocationId);
  if (!sandbox) throw new CloisterError('state.wrong', 'The allocation does not run.');
  const spec = parseJson(ExecSpecSchema, asked.specJson, 'the spec of an exec');
  const told = Promise.withResolvers<void>();
  const exec = sandbox.exec(spec, async (fd, bytes) => {
    await told.promise; // that it runs comes before what it says
    await frames.write({ frame: 'output', output: { channel: fd, atMs: parts.clock.now(), data: bytes } });
  });
  const gone = goneSignal(frames);
  gone.addEventListener('abort', () => exec.close());
  if (gone.aborted) exec.close();
  void takeInput(frames, exec);
  try {
    await exec.started;
    const startedOrNot = await Promise.race([exec.ended, Promise.resolve(undefined)]);
    if (startedOrNot?.kind !== 'error') await frames.write(control({ type: 'started' }));
  } finally {
    told.resolve();
  }
  const end = await exec.ended;
  await frames.write(control(end.kind === 'error' ? { type: 'error', reason: end.reason } : exitOf(end)));
}

function exitOf(end: { exitCode: number; signal?: number; oomKilled: boolean }): StreamControl {
  const { exitCode, signal, oomKilled } = end;
  return {
    type: 'exit',
    exitCode,
    ...(signal === undefined ? {} : { signal }),
    ...(oomKilled ? { oomKilled } : {}),
  };
}

async function servePull(parts: StreamParts, frames: Frames, reference: string): Promise<void> {
  const { images, nodeId } = parts;
  const gone = goneSignal(frames);
  let last: PullProgress = {
    reference,
    nodeId: nodeId as PullProgress['nodeId'],
    stage: 'resolving',
    fetchedBytes: 0,
    totalBytes: 0,
  };
  const tell = async (news: Partial<PullProgress>): Promise<void> => {
    last = { ...last, ...news };
    await frames.write({ frame: 'progressJson', progressJson: JSON.stringify(last) });
  };
  try {
    const { digest } = await images.pull(reference, {
      refresh: true,
      signal: gone,
      onProgress: (step) => {
        if (step.stage !== 'done') tell(step).catch(() => {}); // `gone` ends the pull
      },
    });
    parts.onImages();
    await tell({ stage: 'done', digest });
  } catch (error) {
    if (gone.aborted) return;
    const code = error instanceof CloisterError ? error.code : 'internal';
    await tell({ stage: 'failed', reason: { code, message: describeError(error) } });
  }
}

/** Aborted when the stream is over. */
function goneSignal(frames: Frames): AbortSignal {
  const gone = new AbortController();
  void frames.closed.then((error) =>
    gone.abort(error ?? new CloisterError('unavailable', 'The stream is over.')),
  );
  return gone.signal;
}
