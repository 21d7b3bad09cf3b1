// Following the embedded store. A watcher keeps no queue: it remembers the next revision it has not delivered and
// reads a bounded page of history from the disk whenever its reader wants more, so history and now are one thing,
// and a slow reader costs nothing but its place.
import { CompactedError, type WatchBatch, type WatchRequest } from './store.ts';
import { type EventRecord, eventOf, readMeta, readSnapshot, type Tables } from './tables.ts';

const PAGE_REVISIONS = 256;
/** A page ends with the revision that reaches this many characters of values. */
const PAGE_CHARACTERS = 4 * 1_048_576;

interface Page {
  readonly batches: readonly WatchBatch[];
  /** The first revision that was not looked at. */
  readonly next: number;
}

export class Watchers {
  readonly #tables: Tables;
  readonly #sleeping = new Set<() => void>();
  #closed = false;

  constructor(tables: Tables) {
    this.#tables = tables;
  }

  /** Something was committed. */
  wake(): void {
    for (const wake of this.#sleeping) wake();
    this.#sleeping.clear();
  }

  close(): void {
    this.#closed = true;
    this.wake();
  }

  async *watch({ prefix, fromRevision, signal }: WatchRequest): AsyncGenerator<WatchBatch, void, undefined> {
    const ended = (): boolean => this.#closed || signal?.aborted === true;
    let next = fromRevision;
    while (!ended()) {
      const page = readPage(this.#tables, prefix, next);
      if (page.next === next) {
        await this.#sleep(signal);
        continue;
      }
      next = page.next;
      for (const batch of page.batches) {
        if (ended()) return;
        yield batch;
      }
    }
  }

  async #sleep(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const wake = (): void => resolve();
    this.#sleeping.add(wake);
    signal?.addEventListener('abort', wake);
    try {
      await promise;
    } finally {
      this.#sleeping.delete(wake);
      signal?.removeEventListener('abort', wake);
    }
  }
}

function readPage(tables: Tables, prefix: string, from: number): Page {
  return readSnapshot(tables, () => {
    const compactRevision = readMeta(tables, 'compactRevision');
    if (from <= compactRevision) throw new CompactedError(from, compactRevision);
    const batches: WatchBatch[] = [];
    let next = from;
    let characters = 0;
    for (const { key: revision, value: records } of tables.history.getRange({
      start: from,
      limit: PAGE_REVISIONS,
    })) {
      const mine = records.filter(([key]) => key.startsWith(prefix));
      if (mine.length > 0)
        batches.push({ revision, events: mine.map((record) => eventOf(record, revision)) });
      next = revision + 1;
      characters += mine.reduce(countCharacters, 0);
      if (characters >= PAGE_CHARACTERS) break;
    }
    return { batches, next };
  });
}

function countCharacters(sum: number, record: EventRecord): number {
  return sum + (record.length === 1 ? 0 : record[1].length);
}
