// How anything is changed: a change is built from the state as it is, and committed only if what it was built from
// is still so. When it is not, the state catches up and the change is built again.
import { randomBytes } from 'node:crypto';
import type { Clock } from '@cloister/kit/clock.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import type { Compare, Op, Store } from '@cloister/store/store.ts';
import type { Follower } from './follow.ts';
import { keys } from './keys.ts';
import type { EventOwner, EventRecord } from './records.ts';
import type { ClusterState } from './state.ts';

/** Attempts of one change before its caller is told that there is a conflict. */
const MAX_ATTEMPTS = 10;

export class Change {
  readonly compare: Compare[] = [];
  readonly ops: Op[] = [];
  readonly events: EventRecord[] = [];
  readonly nowMs: number;

  constructor(nowMs: number) {
    this.nowMs = nowMs;
  }

  /** Only if the key still has this revision; 0: only if there is no such key. */
  require(key: string, modRevision: number): void {
    this.compare.push({ key, modRevision });
  }

  /** Writes a key that is still at this revision; 0: a new key. */
  put(key: string, record: unknown, modRevision: number): void {
    this.require(key, modRevision);
    this.ops.push({ type: 'put', key, value: JSON.stringify(record) });
  }

  delete(key: string, modRevision: number): void {
    this.require(key, modRevision);
    this.ops.push({ type: 'delete', key });
  }

  deleteAll(prefix: string): void {
    this.ops.push({ type: 'deleteRange', prefix });
  }

  /** Told in the same transaction as what it tells of. */
  tell(event: Omit<EventRecord, 'at'>): void {
    this.events.push({ at: this.nowMs, ...event });
  }
}

export type Build = (state: ClusterState, change: Change) => boolean;

export class Committer {
  readonly #store: Store;
  readonly #follower: Follower;
  readonly #clock: Clock;
  #sequence = 0;
  readonly #instance = randomBytes(4).toString('hex');

  constructor(store: Store, follower: Follower, clock: Clock) {
    this.#store = store;
    this.#follower = follower;
    this.#clock = clock;
  }

  /**
   * Builds and commits; when it returns, the change is durable and the state shows it. `build` returns false when
   * there is nothing to do (then nothing is done, and false returned), throws when it must not be done, and may be
   * called again. Throws `conflict` when others were faster each time.
   */
  async commit(build: Build): Promise<boolean> {
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      const change = new Change(this.#clock.now());
      if (!build(this.#follower.state, change)) return false;
      const then = [...change.ops, ...this.#eventOps(change)];
      const result = await this.#store.txn({ compare: change.compare, then });
      await this.#follower.reach(result.revision);
      if (result.succeeded) return true;
    }
    throw new CloisterError(
      'conflict',
      `Could not make the change: it collided with others ${MAX_ATTEMPTS} times.`,
    );
  }

  /** One key for each owner, so that each log is trimmed by itself. */
  #eventOps(change: Change): Op[] {
    const byOwner = Map.groupBy(change.events, ({ tenantId }): EventOwner => tenantId ?? 'cluster');
    return [...byOwner].map(([owner, events]) => {
      this.#sequence += 1;
      const sequence = `${String(this.#sequence).padStart(10, '0')}-${this.#instance}`;
      return { type: 'put', key: keys.events(owner, change.nowMs, sequence), value: JSON.stringify(events) };
    });
  }
}
