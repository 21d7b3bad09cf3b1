// The health of the nodes, as this server sees it: in memory only, by its own monotonic clock, so that neither
// heartbeats nor a node's wrong clock ever reach the store. A node is ready while it has a session, suspect when it
// lost it, down when it did not come back within nodeDownAfterMs. After a start of the server every node is suspect.
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { EventType } from '@cloister/model/event.ts';
import type { NodeId } from '@cloister/model/ids.ts';
import type { Image } from '@cloister/model/image.ts';
import type { Node, NodeHealth } from '@cloister/model/node.ts';
import type { Held, NodeRecord } from './records.ts';
import type { Cluster } from './settings.ts';

interface Vitals {
  health: NodeHealth;
  lastSeenAt: number | undefined;
  images: readonly Image[];
  /** Ends the wait for `down`. */
  readonly wait: AbortController;
}

export class Fleet {
  readonly #cluster: Cluster;
  readonly #vitals = new Map<NodeId, Vitals>();
  readonly #listeners = new Set<(nodeId: NodeId) => void>();
  readonly #stopListening: () => void;
  #closed = false;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    for (const nodeId of cluster.follower.state.nodes.keys()) this.#suspect(nodeId, undefined);
    this.#stopListening = cluster.follower.listen((change) => {
      for (const nodeId of change.nodes) this.#follow(nodeId);
    });
  }

  /** Called when a node's health has changed. Returns how to stop. */
  onChange(listener: (nodeId: NodeId) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Waits until the node has a session: true. False when it is down first, or gone, or the signal is aborted. */
  async whenReady(nodeId: NodeId, signal: AbortSignal): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const check = (): void => {
      const health = this.healthOf(nodeId);
      if (health !== 'suspect' || signal.aborted) resolve(health === 'ready' && !signal.aborted);
    };
    const stopListening = this.onChange(check);
    signal.addEventListener('abort', check);
    check();
    try {
      return await promise;
    } finally {
      stopListening();
      signal.removeEventListener('abort', check);
    }
  }

  healthOf(nodeId: NodeId): NodeHealth {
    return this.#vitals.get(nodeId)?.health ?? 'down';
  }

  imagesOf(nodeId: NodeId): readonly Image[] {
    return this.#vitals.get(nodeId)?.images ?? [];
  }

  setImages(nodeId: NodeId, images: readonly Image[]): void {
    const vitals = this.#vitals.get(nodeId);
    if (vitals) vitals.images = images;
  }

  /** A word from the node. */
  seen(nodeId: NodeId): void {
    const vitals = this.#vitals.get(nodeId);
    if (vitals) vitals.lastSeenAt = this.#cluster.clock.now();
  }

  sessionBegan(nodeId: NodeId, message: string): void {
    const old = this.#vitals.get(nodeId);
    old?.wait.abort();
    this.#vitals.set(nodeId, {
      health: 'ready',
      lastSeenAt: this.#cluster.clock.now(),
      images: old?.images ?? [],
      wait: new AbortController(),
    });
    this.#tell(nodeId, 'node.ready', message);
  }

  sessionEnded(nodeId: NodeId, why: string): void {
    const vitals = this.#vitals.get(nodeId);
    if (this.#closed || vitals?.health !== 'ready') return;
    this.#suspect(nodeId, vitals);
    this.#tell(nodeId, 'node.suspect', why);
  }

  view({ record, modRevision }: Held<NodeRecord>): Node {
    const { instanceId: _instanceId, ...node } = record;
    const lastSeenAt = this.#vitals.get(record.id)?.lastSeenAt;
    return {
      ...node,
      health: this.healthOf(record.id),
      used: this.#cluster.follower.state.usedOf(record.id),
      ...(lastSeenAt === undefined ? {} : { lastSeenAt }),
      version: modRevision,
    };
  }

  /** Throws `node.down` unless the node has a session. */
  requireReady(nodeId: NodeId): void {
    if (this.healthOf(nodeId) === 'ready') return;
    const name = this.#cluster.follower.state.nodes.get(nodeId)?.record.name ?? nodeId;
    throw new CloisterError('node.down', `The node ${name} is not connected.`);
  }

  close(): void {
    this.#closed = true;
    this.#stopListening();
    for (const vitals of this.#vitals.values()) vitals.wait.abort();
  }

  #follow(nodeId: NodeId): void {
    const known = this.#cluster.follower.state.nodes.has(nodeId);
    const vitals = this.#vitals.get(nodeId);
    if (known && !vitals) this.#suspect(nodeId, undefined);
    if (!known && vitals) {
      vitals.wait.abort();
      this.#vitals.delete(nodeId);
    }
  }

  #suspect(nodeId: NodeId, old: Vitals | undefined): void {
    const vitals: Vitals = {
      health: 'suspect',
      lastSeenAt: old?.lastSeenAt,
      images: old?.images ?? [],
      wait: new AbortController(),
    };
    this.#vitals.set(nodeId, vitals);
    const { clock, settings } = this.#cluster;
    const wait = clock.sleep(settings.nodeDownAfterMs, vitals.wait.signal);
    void wait.then(
      () => {
        vitals.health = 'down';
        vitals.images = [];
        this.#tell(nodeId, 'node.down', `It had no session for ${settings.nodeDownAfterMs} ms.`);
      },
      () => {}, // it came back, or we are closing
    );
  }

  #tell(nodeId: NodeId, type: EventType, message: string): void {
    for (const listener of this.#listeners) listener(nodeId);
    const { committer, logger } = this.#cluster;
    const committed = committer.commit((state, change) => {
      const node = state.nodes.get(nodeId);
      if (!node || this.#closed) return false;
      change.tell({ type, subject: nodeId, name: node.record.name, message });
      return true;
    });
    committed.catch((error: unknown) =>
      logger.warn({ nodeId, type, error: describeError(error) }, 'an event was lost'),
    );
  }
}
