// What the tests of stores share: the store under test, and small words to speak about it.
import type { Op, Store, WatchBatch, WatchRequest } from './store.ts';

export interface StoreUnderTest {
  readonly store: Store;
  /** Lets this much time pass for leases: a manual clock moves, a real one is waited for. */
  readonly passTime: (ms: number) => Promise<void>;
  /** Closes the store and removes what it left. */
  readonly remove: () => Promise<void>;
}

export type Body = (store: Store, under: StoreUnderTest) => Promise<void>;

export type Check = (sentence: string, body: Body) => void;

export const put = (key: string, value: string): Op => ({ type: 'put', key, value });

export const hasCode = (code: string) => (error: unknown) => (error as { code?: string }).code === code;

/** Everything from a revision on, up to and including the batch of `untilRevision`. */
export async function collect(
  store: Store,
  request: WatchRequest,
  untilRevision: number,
): Promise<WatchBatch[]> {
  const batches: WatchBatch[] = [];
  for await (const batch of store.watch(request)) {
    batches.push(batch);
    if (batch.revision >= untilRevision) break;
  }
  return batches;
}
