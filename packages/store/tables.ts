// The embedded store on disk: five LMDB tables in one folder, and how their records are written.
//
//   current    key -> the newest put of a key that is there
//   history    revision -> the events of that revision
//   leases     lease -> its TTL
//   leaseKeys  [lease, key] -> true
//   meta       name -> number: see META
import { mkdir, open as openFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { withTimeout } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { type Database, open, type RootDatabase } from 'lmdb';
import type { KeyValue, LeaseId, WatchEvent } from './store.ts';

const FORMAT = 1;

/** The names in the meta table; each is 0 until written. */
export type Meta = 'format' | 'revision' | 'compactRevision' | 'historyBytes' | 'lastLease';

/** value, createRevision, modRevision, version, lease. */
export type CurrentRecord = readonly [string, number, number, number, LeaseId | null];
/** key and the put; key alone is a delete. */
export type EventRecord = readonly [string, string, number, number, LeaseId | null] | readonly [string];

export interface Tables {
  readonly root: RootDatabase;
  readonly current: Database<CurrentRecord, string>;
  readonly history: Database<readonly EventRecord[], number>;
  readonly leases: Database<number, LeaseId>;
  readonly leaseKeys: Database<true, [LeaseId, string]>;
  readonly meta: Database<number, Meta>;
}

export async function openTables(folder: string): Promise<Tables> {
  const root = open({
    path: folder,
    noSubdir: false,
    maxDbs: 8,
    encoding: 'msgpack',
    // With overlapping syncs a commit resolves before it is on the disk. Off, a commit is LMDB's own: the data
    // pages are synced, then the page that makes them count is written through, and only then does it resolve.
    overlappingSync: false,
  });
  const tables: Tables = {
    root,
    current: root.openDB({ name: 'current' }),
    history: root.openDB({ name: 'history' }),
    leases: root.openDB({ name: 'leases' }),
    leaseKeys: root.openDB({ name: 'leaseKeys' }),
    meta: root.openDB({ name: 'meta' }),
  };
  const format = readMeta(tables, 'format');
  if (format === 0) await tables.meta.put('format', FORMAT);
  else if (format !== FORMAT) {
    await root.close();
    throw new CloisterError(
      'unavailable',
      `Could not open the store in ${folder}: its format is ${format}, this program knows ${FORMAT}.`,
    );
  }
  await syncFolder(folder);
  return tables;
}

/** Makes the folder, with its entry in the one above on the disk. */
export async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await syncFolder(dirname(folder));
}

/** A new file is only there after power loss when its folder was synced too. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await openFile(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

export function readMeta(tables: Tables, name: Meta): number {
  return tables.meta.get(name) ?? 0;
}

export function keyValueOf(key: string, record: CurrentRecord): KeyValue {
  const [value, createRevision, modRevision, version, lease] = record;
  return { key, value, createRevision, modRevision, version, ...(lease === null ? {} : { lease }) };
}

export function eventOf(record: EventRecord, revision: number): WatchEvent {
  const [key] = record;
  if (record.length === 1)
    return { type: 'delete', key, createRevision: 0, modRevision: revision, version: 0 };
  const [, value, createRevision, version, lease] = record;
  return { type: 'put', ...keyValueOf(key, [value, createRevision, revision, version, lease]) };
}

/** Runs the body in one transaction and resolves when it is on the disk. When the body throws, nothing is done. */
export async function transact(tables: Tables, body: () => void): Promise<void> {
  try {
    // A child, because lmdb-js undoes only a child transaction when its callback throws.
    await tables.root.childTransaction(body);
  } catch (error) {
    throw await commitErrorOf(error);
  }
}

/** lmdb-js hands the reason of a failed commit over as a promise, which nobody must leave unhandled. */
async function commitErrorOf(error: unknown): Promise<unknown> {
  if (!(error instanceof Error) || !('commitError' in error) || !(error.commitError instanceof Promise))
    return error;
  const reason = error.commitError.then(
    () => error,
    (why: unknown) => why,
  );
  return await withTimeout(reason, 1_000, () => error).catch(() => error);
}

/** Runs a read of several steps on one snapshot, the newest committed. */
export function readSnapshot<Result>(tables: Tables, read: () => Result): Result {
  // Reads of one turn share a transaction that may have begun before the last commit was heard of.
  tables.root.resetReadTxn();
  const transaction = tables.root.useReadTransaction();
  try {
    return read();
  } finally {
    transaction.done();
  }
}
