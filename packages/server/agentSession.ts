// One agent's session: what the node should run, told in order and in full, and what it says, taken in. Whether an
// agent may have a session at all is decided in sessions.ts.
import { parseJson } from '@cloister/link/json.ts';
import type { LinkStream } from '@cloister/link/linkStream.ts';
import type { AgentMessage, AllocationStatus, ServerMessage, SignalResult } from '@cloister/link/messages.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { type AllocationId, AllocationIdSchema, type NodeId } from '@cloister/model/ids.ts';
import { type Image, ImageSchema } from '@cloister/model/image.ts';
import { ALLOCATION_STATES, type AllocationState, isEnded, TimelineSchema } from '@cloister/model/job.ts';
import Type from 'typebox';
import Value from 'typebox/value';
import type { Fleet } from './fleet.ts';
import type { Cluster } from './settings.ts';
import type { NodeStatus, StatusWriter } from './statuses.ts';

/** Messages, besides assignments, that may wait for the agent to read; one that is so far behind is hung up on. */
const MAX_OUTBOX = 4096;
const MAX_IMAGES = 10_000;
const MISSED_HEARTBEATS = 3;

export type AgentStream = LinkStream<AgentMessage, ServerMessage>;

export class AgentSession {
  readonly nodeId: NodeId;
  readonly #cluster: Cluster;
  readonly #fleet: Fleet;
  readonly #statuses: StatusWriter;
  readonly #stream: AgentStream;
  readonly #onSignalResult: (result: SignalResult) => void;
  readonly #outbox: ServerMessage[] = [];
  readonly #dirty = new Set<AllocationId>();
  /** What the agent was told last of each allocation. */
  readonly #told = new Map<AllocationId, string>();
  #wake: () => void = () => {};
  #over = false;
  #heardAtMs: number;

  constructor(
    nodeId: NodeId,
    stream: AgentStream,
    parts: {
      cluster: Cluster;
      fleet: Fleet;
      statuses: StatusWriter;
      onSignalResult: (result: SignalResult) => void;
    },
  ) {
    this.nodeId = nodeId;
    this.#stream = stream;
    this.#cluster = parts.cluster;
    this.#fleet = parts.fleet;
    this.#statuses = parts.statuses;
    this.#onSignalResult = parts.onSignalResult;
    this.#heardAtMs = parts.cluster.clock.monotonic();
  }

  /** Runs to the end of the session; throws why it broke. */
  async run(messages: AsyncIterator<AgentMessage>): Promise<void> {
    const done = new AbortController();
    const over = this.#stream.closed.then((error) => {
      throw error ?? new CloisterError('unavailable', 'The agent ended the session.');
    });
    try {
      await Promise.race([this.#speak(), this.#listen(messages), this.#watchHeartbeats(done.signal), over]);
    } finally {
      over.catch(() => {});
      this.#over = true;
      this.#wake();
      done.abort();
    }
  }

  /** False when the agent is too far behind; its session ends then. */
  send(message: ServerMessage): boolean {
    if (this.#over) return false;
    if (this.#outbox.length >= MAX_OUTBOX) {
      this.close(new CloisterError('limit.exceeded', 'The agent does not read what it is sent.'));
      return false;
    }
    this.#outbox.push(message);
    this.#wake();
    return true;
  }

  /** The allocation, or its job, has changed. */
  touch(id: AllocationId): void {
    this.#dirty.add(id);
    this.#wake();
  }

  close(reason: CloisterError): void {
    this.#stream.cancel(reason);
  }

  async #speak(): Promise<void> {
    const { clock, settings, follower } = this.#cluster;
    const { heartbeatIntervalMs } = settings;
    await this.#stream.write({ message: 'welcome', welcome: { heartbeatIntervalMs, clockMs: clock.now() } });
    for (const { record } of follower.state.allocationsOfNode(this.nodeId)) {
      const message = this.#assignment(record.id);
      if (message) await this.#stream.write(message);
    }
    await this.#stream.write({ message: 'complete', complete: {} });
    while (!this.#over) {
      const message = this.#next();
      if (message) await this.#stream.write(message);
      else if (this.#dirty.size === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  #next(): ServerMessage | undefined {
    const message = this.#outbox.shift();
    if (message) return message;
    for (const id of this.#dirty) {
      this.#dirty.delete(id);
      const assignment = this.#assignment(id);
      if (assignment) return assignment;
    }
    return undefined;
  }

  /** What the agent does not know yet of the allocation. */
  #assignment(id: AllocationId): ServerMessage | undefined {
    const { state } = this.#cluster.follower;
    const record = state.allocations.get(id)?.record;
    const job = record && state.jobs.get(record.jobId)?.record;
    if (!job || record.nodeId !== this.nodeId) {
      return this.#told.delete(id) ? { message: 'remove', remove: { allocationId: id } } : undefined;
    }
    const keep = isEnded(record.state);
    // A second stop may only have another grace.
    const news = keep ? 'ended' : `${job.desired}/${job.stopGraceMs}`;
    const told = this.#told.get(id);
    this.#told.set(id, news);
    // That it ended is known from the agent itself, unless this is the first that it hears of it.
    if (told === news || (told !== undefined && keep)) return undefined;
    return {
      message: 'assignment',
      assignment: {
        allocationId: id,
        tenantId: record.tenantId,
        jobId: record.jobId,
        jobName: job.name,
        specJson: JSON.stringify(job.spec),
        desired: keep ? 'kill' : job.desired,
        stopGraceMs: job.stopGraceMs,
        index: record.index,
        keep,
      },
    };
  }

  async #listen(messages: AsyncIterator<AgentMessage>): Promise<void> {
    for (;;) {
      const next = await messages.next();
      if (next.done) return;
      this.#heardAtMs = this.#cluster.clock.monotonic();
      this.#fleet.seen(this.nodeId);
      await this.#hear(next.value);
    }
  }

  async #hear(message: AgentMessage): Promise<void> {
    switch (message.message) {
      case 'hello':
        throw new CloisterError('request.invalid', 'The agent said hello twice.');
      case 'heartbeat':
        return;
      case 'status':
        return await this.#hearStatus(message.status);
      case 'images':
        return this.#hearImages(message.images.imageJson);
      case 'signalResult':
        return this.#onSignalResult(message.signalResult);
    }
  }

  async #hearStatus(sent: AllocationStatus): Promise<void> {
    const status = readStatus(this.nodeId, sent);
    const { allocationId, sequence } = status;
    await this.#statuses.submit(status, (outcome) => {
      if (outcome === 'stored')
        this.send({ message: 'statusStored', statusStored: { allocationId, sequence } });
      else if (outcome === 'unknown') this.send({ message: 'remove', remove: { allocationId } });
      else this.close(new CloisterError('unavailable', 'What the agent reported could not be stored.'));
    });
  }

  #hearImages(imageJson: readonly string[]): void {
    const images: Image[] = [];
    for (const text of imageJson.slice(0, MAX_IMAGES)) {
      try {
        const image = parseJson(ImageListItemSchema, text, "an image of the agent's list");
        images.push({ ...image, nodeId: this.nodeId });
      } catch (error) {
        this.#cluster.logger.warn(
          { nodeId: this.nodeId, error: describeError(error) },
          'an image was left out',
        );
      }
    }
    this.#fleet.setImages(this.nodeId, images);
  }

  /** The connection may live while the agent does not. */
  async #watchHeartbeats(signal: AbortSignal): Promise<void> {
    const { clock, settings } = this.#cluster;
    const limitMs = MISSED_HEARTBEATS * settings.heartbeatIntervalMs;
    while (!signal.aborted) {
      const silentMs = clock.monotonic() - this.#heardAtMs;
      if (silentMs >= limitMs)
        throw new CloisterError('unavailable', `The agent said nothing for ${limitMs} ms.`);
      await clock.sleep(limitMs - silentMs, signal).catch(() => {});
    }
  }
}

/** The agent leaves nodeId "": it cannot say whose images these are anyway. */
const ImageListItemSchema = Type.Omit(ImageSchema, ['nodeId']);

/** Whatever its sender says, a status is small: the writer's batches count on that. */
function readStatus(nodeId: NodeId, sent: AllocationStatus): NodeStatus {
  if (!Value.Check(AllocationIdSchema, sent.allocationId)) {
    throw new CloisterError('request.invalid', 'The agent reported about what is no id of an allocation.');
  }
  const state = sent.state as AllocationState;
  if (!ALLOCATION_STATES.includes(state) || state === 'pending' || state === 'placed' || state === 'lost') {
    throw new CloisterError('request.invalid', `The agent reported the state "${sent.state.slice(0, 40)}".`);
  }
  const timeline = parseJson(TimelineSchema, sent.timelineJson || '{}', 'the timeline of a status');
  return {
    allocationId: sent.allocationId,
    nodeId,
    sequence: sent.sequence,
    state,
    ...(sent.exitCode === undefined ? {} : { exitCode: sent.exitCode & 0xff }),
    ...(sent.signal ? { signal: Math.min(sent.signal, 64) } : {}),
    oomKilled: sent.oomKilled,
    ...(sent.reasonCode
      ? { reason: { code: sent.reasonCode.slice(0, 64), message: sent.reasonMessage.slice(0, 4096) } }
      : {}),
    imageDigest: sent.imageDigest.slice(0, 256),
    timeline,
  };
}
