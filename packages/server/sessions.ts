// Who may have a session, and the way to each connected agent: assignments, signals, and bulk streams.
import { randomBytes } from 'node:crypto';
import { withTimeout } from '@cloister/kit/wait.ts';
import { parseJson } from '@cloister/link/json.ts';
import type { LinkStream } from '@cloister/link/linkStream.ts';
import {
  type AgentMessage,
  type Hello,
  PROTOCOL_VERSION,
  type SignalResult,
  type StreamFrame,
  type StreamPurpose,
} from '@cloister/link/messages.ts';
import type { AgentPeer } from '@cloister/link/serverLink.ts';
import { CloisterError, describeError, isErrorCode } from '@cloister/model/errors.ts';
import type { AllocationId, NodeId } from '@cloister/model/ids.ts';
import { CapacitySchema, NodeFactsSchema } from '@cloister/model/node.ts';
import { formatDuration } from '@cloister/model/units.ts';
import { AgentSession, type AgentStream } from './agentSession.ts';
import type { Refusals } from './events.ts';
import type { Fleet } from './fleet.ts';
import { keys } from './keys.ts';
import type { NodeRecord } from './records.ts';
import type { Cluster } from './settings.ts';
import type { StateChange } from './state.ts';
import { StatusWriter } from './statuses.ts';

const HELLO_TIMEOUT_MS = 10_000;
const STREAM_TIMEOUT_MS = 10_000;
const SIGNAL_TIMEOUT_MS = 10_000;
const MAX_CLOCK_SKEW_MS = 300_000;

export type Frames = LinkStream<StreamFrame, StreamFrame>;

interface Expected {
  readonly nodeId: NodeId;
  readonly resolve: (frames: Frames) => void;
}

export class Sessions {
  readonly #cluster: Cluster;
  readonly #fleet: Fleet;
  readonly #refusals: Refusals;
  readonly #statuses: StatusWriter;
  readonly #byNode = new Map<NodeId, AgentSession>();
  readonly #expected = new Map<string, Expected>();
  readonly #signals = new Map<string, (result: SignalResult) => void>();
  readonly #stopListening: () => void;

  constructor(cluster: Cluster, fleet: Fleet, refusals: Refusals) {
    this.#cluster = cluster;
    this.#fleet = fleet;
    this.#refusals = refusals;
    this.#statuses = new StatusWriter(cluster);
    this.#stopListening = cluster.follower.listen((change) => this.#route(change));
  }

  /** For the link: one session, to its end. */
  async onSession(stream: AgentStream, peer: AgentPeer): Promise<void> {
    const messages = stream[Symbol.asyncIterator]();
    const hello = await readHello(messages);
    let readyMessage: string;
    try {
      readyMessage = await this.#admit(hello, peer.nodeId);
    } catch (error) {
      await this.#refuse(stream, peer, error);
      return;
    }
    const session = new AgentSession(peer.nodeId, stream, {
      cluster: this.#cluster,
      fleet: this.#fleet,
      statuses: this.#statuses,
      onSignalResult: (result) => this.#signals.get(result.requestId)?.(result),
    });
    // The same agent dialled again: the older session is a dead connection that nobody has noticed yet.
    this.#byNode
      .get(peer.nodeId)
      ?.close(new CloisterError('unavailable', 'A newer session replaced this one.'));
    this.#byNode.set(peer.nodeId, session);
    this.#fleet.sessionBegan(peer.nodeId, readyMessage);
    let why = 'The agent ended its session.';
    try {
      await session.run(messages);
    } catch (error) {
      why = describeError(error);
      throw error;
    } finally {
      if (this.#byNode.get(peer.nodeId) === session) {
        this.#byNode.delete(peer.nodeId);
        this.#fleet.sessionEnded(peer.nodeId, why);
      }
    }
  }

  /** For the link: a bulk stream that an agent opened, to its end. */
  async onStream(frames: Frames, streamId: string, peer: AgentPeer): Promise<void> {
    const expected = this.#expected.get(streamId);
    if (expected?.nodeId !== peer.nodeId) {
      throw new CloisterError('not-found', 'Nobody asked this node for that stream.');
    }
    this.#expected.delete(streamId);
    expected.resolve(frames);
    await frames.closed;
  }

  /** Asks a node for a stream. Throws `node.down` when it is not connected, or does not open it in time. */
  async openStream(nodeId: NodeId, purpose: StreamPurpose): Promise<Frames> {
    this.#fleet.requireReady(nodeId);
    const streamId = randomBytes(32).toString('base64url');
    const { promise, resolve } = Promise.withResolvers<Frames>();
    this.#expected.set(streamId, { nodeId, resolve });
    const late = () => new CloisterError('node.down', 'The node did not open the stream within 10 s.');
    try {
      const sent = this.#byNode
        .get(nodeId)
        ?.send({ message: 'openStream', openStream: { streamId, ...purpose } });
      if (!sent) throw new CloisterError('node.down', 'The node is not connected.');
      return await withTimeout(promise, STREAM_TIMEOUT_MS, late);
    } finally {
      this.#expected.delete(streamId);
    }
  }

  /** Throws what the agent says, or `node.down` when it does not answer in time. */
  async signal(nodeId: NodeId, allocationId: AllocationId, signal: number): Promise<void> {
    this.#fleet.requireReady(nodeId);
    const requestId = randomBytes(16).toString('base64url');
    const { promise, resolve } = Promise.withResolvers<SignalResult>();
    this.#signals.set(requestId, resolve);
    const late = () =>
      new CloisterError('node.down', 'The node did not say within 10 s whether the signal arrived.');
    try {
      this.#byNode.get(nodeId)?.send({ message: 'signal', signal: { requestId, allocationId, signal } });
      const { errorCode, errorMessage } = await withTimeout(promise, SIGNAL_TIMEOUT_MS, late);
      if (errorCode) throw new CloisterError(isErrorCode(errorCode) ? errorCode : 'internal', errorMessage);
    } finally {
      this.#signals.delete(requestId);
    }
  }

  async close(): Promise<void> {
    this.#stopListening();
    for (const session of this.#byNode.values()) {
      session.close(new CloisterError('unavailable', 'The control plane is closing.'));
    }
    await this.#statuses.close();
  }

  #route(change: StateChange): void {
    for (const [id, { nodeId }] of change.allocations) if (nodeId) this.#byNode.get(nodeId)?.touch(id);
    const { state } = this.#cluster.follower;
    for (const jobId of change.jobs) {
      for (const { record } of state.allocationsOfJob(jobId)) {
        if (record.nodeId) this.#byNode.get(record.nodeId)?.touch(record.id);
      }
    }
    for (const nodeId of change.nodes) {
      if (state.nodes.has(nodeId)) continue;
      this.#byNode.get(nodeId)?.close(new CloisterError('auth.invalid', 'This node was removed.'));
    }
  }

  /** Checks who says hello and keeps what is new about the node. Returns a sentence for the event. */
  async #admit(hello: Hello, nodeId: NodeId): Promise<string> {
    const { committer, clock } = this.#cluster;
    if (hello.protocolVersion !== PROTOCOL_VERSION) {
      throw new CloisterError(
        'request.invalid',
        `The agent speaks version ${hello.protocolVersion}, not ${PROTOCOL_VERSION}.`,
      );
    }
    const facts = parseJson(NodeFactsSchema, hello.factsJson, 'facts_json of the hello');
    const capacity = parseJson(CapacitySchema, hello.capacityJson, 'capacity_json of the hello');
    await committer.commit((state, change) => {
      const node = state.nodes.get(nodeId);
      if (!node)
        throw new CloisterError('auth.invalid', 'This node is not, or no longer, part of the cluster.');
      if (node.record.instanceId !== hello.instanceId) {
        throw new CloisterError(
          'join.name-taken',
          `Another agent joined as ${node.record.name}; this is not it.`,
        );
      }
      const record: NodeRecord = { ...node.record, facts, capacity };
      if (JSON.stringify(record) === JSON.stringify(node.record)) return false;
      change.put(keys.node(nodeId), record, node.modRevision);
      return true;
    });
    const skewMs = hello.clockMs - clock.now();
    if (Math.abs(skewMs) <= MAX_CLOCK_SKEW_MS) return 'Its session began.';
    return `Its session began. Its clock is ${formatDuration(Math.abs(skewMs))} ${skewMs > 0 ? 'ahead' : 'behind'}.`;
  }

  async #refuse(stream: AgentStream, peer: AgentPeer, reason: unknown): Promise<void> {
    const error =
      reason instanceof CloisterError ? reason : new CloisterError('internal', 'The session failed.');
    const message = `From ${peer.address}: ${describeError(reason)}`;
    const name = this.#cluster.follower.state.nodes.get(peer.nodeId)?.record.name;
    const event = {
      type: 'node.session-refused',
      subject: peer.nodeId,
      message,
      ...(name ? { name } : {}),
    } as const;
    await this.#refusals.tell(event);
    await stream.write({ message: 'refused', refused: { code: error.code, message: error.message } });
  }
}

async function readHello(messages: AsyncIterator<AgentMessage>): Promise<Hello> {
  const late = () => new CloisterError('request.invalid', 'The agent did not say hello within 10 s.');
  const first = await withTimeout(messages.next(), HELLO_TIMEOUT_MS, late);
  if (first.done || first.value.message !== 'hello') {
    throw new CloisterError('request.invalid', 'The first message of a session must be hello.');
  }
  return first.value.hello;
}
