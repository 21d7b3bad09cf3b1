// The store inside this process, on LMDB: for a cluster with one control plane.
//
// Reads are LMDB snapshots and never wait. Writes go through one line (groupCommit.ts) into write transactions
// whose callback checks the compares and writes, with LMDB's writer lock held: nothing can come between. The
// callback runs on this thread, because a compare must see the writes before it; the commit and its sync, which
// are what takes long, run on LMDB's own thread.
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { type FolderLock, lockFolder } from '@cloister/kit/folderLock.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { applyTxn, createLease, endLease, type Retention, trimHistory } from './apply.ts';
import { checkKey, checkPrefix, checkRevision, checkTtl, checkTxn, spanOf } from './bounds.ts';
import { GroupCommit } from './groupCommit.ts';
import { Leases, MAX_LEASES } from './leases.ts';
import {
  type KeyValue,
  type LeaseId,
  type RangeRequest,
  type RangeResult,
  STORE_BOUNDS,
  type Store,
  type StoreStatus,
  type TxnRequest,
  type TxnResult,
  type WatchBatch,
  type WatchRequest,
} from './store.ts';
import {
  keyValueOf,
  makeFolder,
  openTables,
  readMeta,
  readSnapshot,
  type Tables,
  transact,
} from './tables.ts';
import { Watchers } from './watch.ts';

/** What a small job weighs in the line of writes. */
const SMALL_BYTES = 256;

export interface EmbeddedOptions {
  /** Where the files are; made when missing. One open store a folder. */
  readonly folder: string;
  /** For leases. Default: the system's. */
  readonly clock?: Clock;
  /** How many revisions of history stay at most. Default 100,000. */
  readonly historyRevisions?: number;
  /** How large the history stays at most, in bytes. Default 1 GiB. */
  readonly historyBytes?: number;
}

/** Opens, or makes, the store in a folder. Throws `folder.locked` when it is open elsewhere. */
export async function openEmbeddedStore(options: EmbeddedOptions): Promise<Store> {
  await makeFolder(options.folder);
  const lock = lockFolder(options.folder, `The store in ${options.folder} is open already.`);
  try {
    return new EmbeddedStore(await openTables(options.folder), lock, options);
  } catch (error) {
    lock.release();
    throw error;
  }
}

class EmbeddedStore implements Store {
  readonly #tables: Tables;
  readonly #lock: FolderLock;
  readonly #retention: Retention;
  readonly #watchers: Watchers;
  readonly #leases: Leases;
  readonly #writes: GroupCommit;
  #closing: Promise<void> | undefined;

  constructor(tables: Tables, lock: FolderLock, options: EmbeddedOptions) {
    this.#tables = tables;
    this.#lock = lock;
    this.#retention = {
      revisions: options.historyRevisions ?? 100_000,
      bytes: options.historyBytes ?? 1_073_741_824,
    };
    this.#watchers = new Watchers(tables);
    this.#writes = new GroupCommit(
      (body) => transact(tables, body),
      () => trimHistory(tables, this.#retention),
      () => this.#watchers.wake(),
    );
    this.#leases = new Leases(options.clock ?? systemClock);
    for (const { key: lease, value: ttlMs } of tables.leases.getRange({})) this.#leases.add(lease, ttlMs);
    this.#leases.start((lease) => this.#endIfOver(lease));
  }

  async get(key: string): Promise<KeyValue | undefined> {
    this.#checkOpen();
    checkKey(key);
    return readSnapshot(this.#tables, () => {
      const record = this.#tables.current.get(key);
      return record && keyValueOf(key, record);
    });
  }

  async range(request: RangeRequest): Promise<RangeResult> {
    this.#checkOpen();
    const span = spanOf(request);
    const limit = request.limit ?? STORE_BOUNDS.rangeItems;
    const last = span.end ?? '\x7f';
    return readSnapshot(this.#tables, () => {
      const found = this.#tables.current.getRange({
        ...(request.reverse
          ? { start: last, exclusiveStart: true, end: span.start, inclusiveEnd: true, reverse: true }
          : { start: span.start, end: last }),
        limit: limit + 1,
      });
      const items = [...found.map(({ key, value }) => keyValueOf(key, value))];
      return {
        revision: readMeta(this.#tables, 'revision'),
        items: items.slice(0, limit),
        more: items.length > limit,
      };
    });
  }

  async txn(request: TxnRequest): Promise<TxnResult> {
    this.#checkOpen();
    const bytes = checkTxn(request);
    return await this.#writes.submit(bytes + SMALL_BYTES, () => applyTxn(this.#tables, request));
  }

  async *watch(request: WatchRequest): AsyncGenerator<WatchBatch, void, undefined> {
    this.#checkOpen();
    checkPrefix(request.prefix);
    checkRevision(request.fromRevision, 1);
    yield* this.#watchers.watch(request);
  }

  async compact(revision: number): Promise<void> {
    this.#checkOpen();
    checkRevision(revision, 0);
    for (let more = true; more; ) {
      more = await this.#writes.submit(SMALL_BYTES, () => {
        const newest = readMeta(this.#tables, 'revision');
        if (revision > newest) {
          throw new CloisterError(
            'request.invalid',
            `Could not compact to ${revision}: the newest revision is ${newest}.`,
          );
        }
        return trimHistory(this.#tables, this.#retention, revision);
      });
    }
  }

  async grantLease(ttlMs: number): Promise<LeaseId> {
    this.#checkOpen();
    checkTtl(ttlMs);
    if (this.#leases.size >= MAX_LEASES)
      throw new CloisterError('limit.exceeded', `There are ${MAX_LEASES} leases already.`);
    const lease = await this.#writes.submit(SMALL_BYTES, () => createLease(this.#tables, ttlMs));
    this.#leases.add(lease, ttlMs);
    return lease;
  }

  async keepAlive(lease: LeaseId): Promise<void> {
    this.#checkOpen();
    this.#leases.renew(lease);
  }

  async revokeLease(lease: LeaseId): Promise<void> {
    this.#checkOpen();
    await this.#writes.submit(SMALL_BYTES, () => endLease(this.#tables, lease));
    this.#leases.remove(lease);
  }

  async status(): Promise<StoreStatus> {
    this.#checkOpen();
    return readSnapshot(this.#tables, () => ({
      revision: readMeta(this.#tables, 'revision'),
      compactRevision: readMeta(this.#tables, 'compactRevision'),
    }));
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await this.#leases.stop();
    await this.#writes.close();
    this.#watchers.close();
    await this.#tables.root.close();
    this.#lock.release();
  }

  /** A keep-alive may have come while this stood in line. */
  async #endIfOver(lease: LeaseId): Promise<void> {
    const ended = await this.#writes.submit(SMALL_BYTES, () => {
      if (!this.#leases.isOver(lease)) return false;
      endLease(this.#tables, lease);
      return true;
    });
    if (ended) this.#leases.remove(lease);
  }

  #checkOpen(): void {
    if (this.#closing) throw new CloisterError('unavailable', 'The store is closed.');
  }
}
