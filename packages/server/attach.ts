// Attach and exec: a client's WebSocket joined to a stream of the agent, bounded in both directions.
//
// An attach outlives the agent's connection: the agent sends an allocation's output from its first byte each time,
// so after a reconnection what the client already has is skipped. Standard input that was under way when the
// connection broke may be lost.
import { withTimeout } from '@cloister/kit/wait.ts';
import { parseJson } from '@cloister/link/json.ts';
import type { StreamFrame } from '@cloister/link/messages.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { AllocationId, NodeId } from '@cloister/model/ids.ts';
import { isEnded } from '@cloister/model/job.ts';
import { CHANNEL, ExecSpecSchema, type StreamControl, StreamControlSchema } from '@cloister/model/stream.ts';
import type { WebSocket } from '@fastify/websocket';
import Value from 'typebox/value';
import type { Fleet } from './fleet.ts';
import type { AllocationRecord } from './records.ts';
import type { Frames, Sessions } from './sessions.ts';
import type { Cluster } from './settings.ts';
import { type ClientMessage, SocketChannel } from './socketChannel.ts';

/** For the start of an allocation. */
const MAX_WAIT_MS = 86_400_000;
const EXEC_SPEC_TIMEOUT_MS = 10_000;
const REOPEN_PAUSE_MS = 200;
/** A stream that lived this long was a good one. */
const GOOD_STREAM_MS = 1_000;
/** Streams in a row that a node that is there did not open, or ended at once without a word on how the workload did. */
const MAX_FAILURES = 20;

export interface AttachParts {
  readonly cluster: Cluster;
  readonly fleet: Fleet;
  readonly sessions: Sessions;
}

export async function serveAttach(
  parts: AttachParts,
  allocationId: AllocationId,
  stdin: boolean,
  socket: WebSocket,
): Promise<void> {
  const channel = new SocketChannel(socket);
  const relay = new Relay(channel, stdin);
  void relay.sendUp();
  try {
    for (let failures = 0; ; failures++) {
      const record = await whenStarted(parts.cluster, allocationId, channel.signal);
      if (!record) return await channel.fail('not-found', 'The allocation was removed.');
      const frames = record.nodeId && (await openAttach(parts, record, record.nodeId, stdin));
      const openedAtMs = parts.cluster.clock.monotonic();
      if (frames && (await relay.run(frames)) === 'ended') return;
      if (parts.cluster.clock.monotonic() - openedAtMs >= GOOD_STREAM_MS) failures = 0;
      // Only the agent knows whether all output was sent. What the server knows of the end is for when it cannot tell.
      const isBack = record.nodeId && (await parts.fleet.whenReady(record.nodeId, channel.signal));
      if (!isBack || failures >= MAX_FAILURES) {
        const verdict = verdictOf(parts, record);
        if (verdict) return await channel.control(verdict);
        return await channel.fail('node.down', 'The node of this allocation went away.');
      }
      await parts.cluster.clock.sleep(REOPEN_PAUSE_MS, channel.signal);
    }
  } catch (error) {
    await channel.fail('unavailable', describeError(error));
  } finally {
    relay.close();
    channel.finish();
  }
}

export async function serveExec(
  parts: AttachParts,
  target: { readonly allocationId: AllocationId; readonly nodeId: NodeId },
  socket: WebSocket,
): Promise<void> {
  const channel = new SocketChannel(socket);
  const relay = new Relay(channel, true);
  try {
    const specJson = JSON.stringify(await readExecSpec(channel));
    const exec = { allocationId: target.allocationId, specJson };
    const frames = await parts.sessions.openStream(target.nodeId, { purpose: 'exec', exec });
    void relay.sendUp();
    if ((await relay.run(frames)) === 'broke')
      await channel.fail('node.down', 'The node of this allocation went away.');
  } catch (error) {
    await channel.fail(error instanceof CloisterError ? error.code : 'internal', describeError(error));
  } finally {
    relay.close();
    channel.finish();
  }
}

/** The allocation once it has output to give or has ended; undefined when it is removed. */
export async function whenStarted(
  cluster: Cluster,
  id: AllocationId,
  signal: AbortSignal,
): Promise<AllocationRecord | undefined> {
  const found = await cluster.follower.until<AllocationRecord | 'removed'>(
    (state) => {
      const record = state.allocations.get(id)?.record;
      if (!record || !state.jobs.has(record.jobId)) return 'removed';
      return record.state === 'running' || isEnded(record.state) ? record : undefined;
    },
    { concerns: (change) => change.allocations.has(id), timeoutMs: MAX_WAIT_MS, signal },
  );
  return found === 'removed' ? undefined : found;
}

/** Carries frames between a client and one stream of an agent after the other. */
class Relay {
  readonly #channel: SocketChannel;
  readonly #stdin: boolean;
  #frames: Frames | undefined;
  #opened = Promise.withResolvers<void>();
  /** Bytes of output that the client has, and those of them that the present stream has repeated. */
  #sentBytes = 0;
  #repeatedBytes = 0;

  constructor(channel: SocketChannel, stdin: boolean) {
    this.#channel = channel;
    this.#stdin = stdin;
    channel.signal.addEventListener('abort', () => this.close());
  }

  /** ended: the agent said how it ended, and the client was told; broke: the stream ended before that. */
  async run(frames: Frames): Promise<'ended' | 'broke'> {
    this.#frames = frames;
    this.#repeatedBytes = 0;
    this.#opened.resolve();
    try {
      for await (const frame of frames) {
        this.#channel.signal.throwIfAborted();
        if (await this.#sendDown(frame)) return 'ended';
      }
    } catch (error) {
      if (this.#channel.signal.aborted) throw error;
    } finally {
      this.#frames = undefined;
      this.#opened = Promise.withResolvers<void>();
      frames.cancel();
    }
    return 'broke';
  }

  /** What the client says, to whichever stream there is, as long as there is a client. */
  async sendUp(): Promise<void> {
    for await (const message of this.#channel) {
      const frame = this.#toAgent(message);
      if (frame === 'wrong') {
        await this.#channel.fail('request.invalid', 'The client broke the protocol of the stream.');
        this.#channel.finish(1008);
        return;
      }
      while (!this.#frames && !this.#channel.signal.aborted) await this.#opened.promise;
      if (frame) await this.#frames?.write(frame).catch(() => {}); // run() sees that the stream broke
    }
  }

  close(): void {
    this.#frames?.cancel();
    this.#opened.resolve();
  }

  /** True when that was the last frame. */
  async #sendDown(frame: StreamFrame): Promise<boolean> {
    if (frame.frame === 'output') {
      const { channel, data } = frame.output;
      const skip = Math.min(data.length, this.#sentBytes - this.#repeatedBytes);
      this.#repeatedBytes += data.length;
      this.#sentBytes += data.length - skip;
      await this.#channel.send(
        channel === CHANNEL.stderr ? CHANNEL.stderr : CHANNEL.stdout,
        data.subarray(skip),
      );
    } else if (frame.frame === 'controlJson') {
      const control = parseJson(StreamControlSchema, frame.controlJson, 'a control frame of the agent');
      if (control.type === 'gap') {
        const skip = Math.min(control.bytes, this.#sentBytes - this.#repeatedBytes);
        this.#repeatedBytes += control.bytes;
        this.#sentBytes += control.bytes - skip;
        if (control.bytes > skip) await this.#channel.control({ type: 'gap', bytes: control.bytes - skip });
        return false;
      }
      await this.#channel.control(control);
      return control.type === 'exit' || control.type === 'error';
    }
    return false;
  }

  #toAgent(message: ClientMessage): StreamFrame | 'wrong' | undefined {
    if (message.kind === 'text') return 'wrong';
    if (message.channel === CHANNEL.stdin)
      return this.#stdin ? { frame: 'stdin', stdin: message.payload } : undefined;
    if (message.channel !== CHANNEL.control) return 'wrong';
    try {
      const control = parseJson(StreamControlSchema, message.payload.toString('utf8'), 'a control frame');
      const fromClient =
        control.type === 'resize' || control.type === 'stdin-eof' || control.type === 'signal';
      return fromClient ? { frame: 'controlJson', controlJson: JSON.stringify(control) } : 'wrong';
    } catch {
      return 'wrong';
    }
  }
}

/** Undefined when the agent is not there, or cannot tell. */
async function openAttach(
  parts: AttachParts,
  record: AllocationRecord,
  nodeId: NodeId,
  stdin: boolean,
): Promise<Frames | undefined> {
  const attach = { allocationId: record.id, stdin };
  return await parts.sessions.openStream(nodeId, { purpose: 'attach', attach }).catch(() => undefined);
}

/** How the allocation ended, by what the server knows; undefined when it has not. */
function verdictOf(parts: AttachParts, record: AllocationRecord): StreamControl | undefined {
  const ended = parts.cluster.follower.state.allocations.get(record.id)?.record;
  if (!ended || !isEnded(ended.state)) return undefined;
  if (ended.state !== 'exited') {
    return {
      type: 'error',
      reason: ended.reason ?? { code: 'internal', message: `The allocation ${ended.state}.` },
    };
  }
  const { exitCode = 0, signal, oomKilled } = ended;
  return {
    type: 'exit',
    exitCode,
    ...(signal === undefined ? {} : { signal }),
    ...(oomKilled ? { oomKilled } : {}),
  };
}

async function readExecSpec(channel: SocketChannel): Promise<unknown> {
  const late = () => new CloisterError('request.invalid', 'The client did not send what to run within 10 s.');
  const first = await withTimeout(channel[Symbol.asyncIterator]().next(), EXEC_SPEC_TIMEOUT_MS, late);
  if (first.done || first.value.kind !== 'text') {
    throw new CloisterError('request.invalid', 'The first message must be a text message: an ExecSpec.');
  }
  let sent: unknown;
  try {
    sent = JSON.parse(first.value.text);
  } catch (error) {
    throw new CloisterError('request.invalid', 'The ExecSpec is not JSON.', { cause: error });
  }
  return parseJson(ExecSpecSchema, JSON.stringify(Value.Default(ExecSpecSchema, sent)), 'the ExecSpec');
}
