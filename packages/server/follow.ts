// Keeps the state up to date from the store's watch, and lets others wait: for a revision (to read one's own
// writes), or for something to become true of an allocation or a job.
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { CompactedError, type Store, type WatchBatch } from '@cloister/store/store.ts';
import { ClusterState, type StateChange } from './state.ts';

const REVISION_TIMEOUT_MS = 10_000;
const STORED_BUT_CLOSING = 'The change is stored, but this server is closing.';

export class Follower {
  #state = new ClusterState();
  readonly #store: Store;
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #stop = new AbortController();
  readonly #listeners = new Set<(change: StateChange) => void>();
  #revisionWaiters: {
    readonly revision: number;
    readonly resolve: () => void;
    readonly reject: (error: Error) => void;
  }[] = [];
  #following: Promise<void> = Promise.resolve();

  constructor(store: Store, logger: Logger, clock: Clock) {
    this.#store = store;
    this.#clock = clock;
    this.#logger = logger;
  }

  /** As of now. A reload replaces it, so hold it no longer than until the next await. */
  get state(): ClusterState {
    return this.#state;
  }

  /** Loads everything; follows from there until closed. */
  async start(): Promise<void> {
    const revision = await this.#load();
    this.#following = this.#follow(revision);
  }

  /** Called after each revision, in order, when the state has it. Returns how to stop. */
  listen(listener: (change: StateChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Resolves when the state has the revision. */
  async reach(revision: number): Promise<void> {
    if (this.#state.revision >= revision) return;
    if (this.#stop.signal.aborted) throw new CloisterError('unavailable', STORED_BUT_CLOSING);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiter = { revision, resolve, reject };
    this.#revisionWaiters.push(waiter);
    const timer = setTimeout(() => {
      this.#revisionWaiters = this.#revisionWaiters.filter((other) => other !== waiter);
      reject(new CloisterError('unavailable', 'The change is stored, but this server has not seen it yet.'));
    }, REVISION_TIMEOUT_MS);
    try {
      await promise;
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Waits until `check`, asked now and after each revision that `concerns` it, gives something. Undefined when the
   * time is over; throws the signal's reason when aborted.
   */
  async until<Value>(
    check: (state: ClusterState) => Value | undefined,
    options: { concerns: (change: StateChange) => boolean; timeoutMs: number; signal?: AbortSignal },
  ): Promise<Value | undefined> {
    options.signal?.throwIfAborted();
    const now = check(this.#state);
    if (now !== undefined) return now;
    const { promise, resolve, reject } = Promise.withResolvers<Value | undefined>();
    const stopListening = this.listen((change) => {
      if (!options.concerns(change)) return;
      const value = check(this.#state);
      if (value !== undefined) resolve(value);
    });
    const timer = setTimeout(() => resolve(undefined), options.timeoutMs);
    const abort = (): void => reject(options.signal?.reason);
    options.signal?.addEventListener('abort', abort);
    try {
      return await promise;
    } finally {
      stopListening();
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', abort);
    }
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#following;
    const closing = new CloisterError('unavailable', STORED_BUT_CLOSING);
    for (const waiter of this.#revisionWaiters.splice(0)) waiter.reject(closing);
  }

  /** Reads all pages, and what changed meanwhile, into a new state, and announces how it differs. Returns its revision. */
  async #load(): Promise<number> {
    const old = this.#state;
    const state = new ClusterState();
    const change = state.newChange(0);
    let firstRevision: number | undefined;
    let lastRevision = 0;
    for (let start = ''; ; ) {
      const page = await this.#store.range({ start, end: '~' });
      firstRevision ??= page.revision;
      lastRevision = page.revision;
      const byRevision = [...page.items].sort((a, b) => a.modRevision - b.modRevision);
      for (const item of byRevision) state.apply(item.key, item.value, item.modRevision, change);
      const last = page.items.at(-1);
      if (!page.more || !last) break;
      start = `${last.key}!`; // the first key after it: "!" is the least character that a key may have
    }
    // The pages are of different moments: what others see begins when all are of the last one.
    if (lastRevision > firstRevision) await this.#catchUp(state, change, firstRevision + 1, lastRevision);
    for (const log of state.eventLogs.values())
      log.entries = new Map([...log.entries].sort(([, a], [, b]) => a.revision - b.revision));
    state.revision = lastRevision;
    for (const id of old.jobs.keys()) if (!state.jobs.has(id)) change.jobs.add(id);
    for (const [id, { record }] of old.allocations)
      if (!state.allocations.has(id)) change.allocations.set(id, record);
    for (const id of old.nodes.keys()) if (!state.nodes.has(id)) change.nodes.add(id);
    const events = change.events
      .filter(({ revision }) => revision > old.revision)
      .sort((a, b) => a.revision - b.revision);
    this.#state = state;
    this.#announce({ ...change, revision: lastRevision, events });
    return lastRevision;
  }

  async #catchUp(state: ClusterState, change: StateChange, from: number, to: number): Promise<void> {
    const signal = this.#stop.signal;
    for await (const batch of this.#store.watch({ prefix: '', fromRevision: from, signal })) {
      applyBatch(state, batch, change);
      if (batch.revision >= to) return;
    }
  }

  async #follow(loaded: number): Promise<void> {
    const signal = this.#stop.signal;
    for (let fromRevision = loaded + 1; !signal.aborted; ) {
      try {
        for await (const batch of this.#store.watch({ prefix: '', fromRevision, signal })) {
          const change = this.#state.newChange(batch.revision);
          applyBatch(this.#state, batch, change);
          this.#state.revision = batch.revision;
          fromRevision = batch.revision + 1;
          this.#announce(change);
        }
        return;
      } catch (error) {
        if (!(error instanceof CompactedError)) {
          this.#logger.error(
            { error: describeError(error) },
            'the watch of the store broke: reading everything again',
          );
        }
        fromRevision = (await this.#reload(fromRevision - 1)) + 1;
      }
    }
  }

  /** The store may be away for a while; then the state stays as it is, and is marked by no longer moving. */
  async #reload(revision: number): Promise<number> {
    const signal = this.#stop.signal;
    while (!signal.aborted) {
      try {
        return await this.#load();
      } catch (error) {
        this.#logger.error(
          { error: describeError(error) },
          'could not read the store: trying again in a second',
        );
        await this.#clock.sleep(1000, signal).catch(() => {});
      }
    }
    return revision;
  }

  #announce(change: StateChange): void {
    for (const listener of this.#listeners) {
      try {
        listener(change);
      } catch (error) {
        this.#logger.error({ error: describeError(error) }, 'a listener of the state failed');
      }
    }
    if (this.#revisionWaiters.length === 0) return;
    const due = this.#revisionWaiters.filter((waiter) => waiter.revision <= this.#state.revision);
    this.#revisionWaiters = this.#revisionWaiters.filter((waiter) => waiter.revision > this.#state.revision);
    for (const waiter of due) waiter.resolve();
  }
}

function applyBatch(state: ClusterState, batch: WatchBatch, change: StateChange): void {
  for (const event of batch.events) {
    state.apply(event.key, event.type === 'put' ? event.value : undefined, event.modRevision, change);
  }
}
