// What a write does to the tables. Everything here runs inside one LMDB write transaction, one caller after the
// other, so what is checked cannot change before it is written.
import { CloisterError } from '@cloister/model/errors.ts';
import { prefixSpan } from './bounds.ts';
import type { Compare, LeaseId, Op, TxnRequest, TxnResult } from './store.ts';
import { type EventRecord, readMeta, type Tables } from './tables.ts';

/** How much old history one transaction removes at most, so that none is held up for long. More than it can add. */
const TRIMMED_PER_COMMIT = 2_048;

export interface Retention {
  readonly revisions: number;
  readonly bytes: number;
}

export function applyTxn(tables: Tables, request: TxnRequest): TxnResult {
  const succeeded = (request.compare ?? []).every((compare) => holds(tables, compare));
  const ops = succeeded ? request.then : (request.else ?? []);
  for (const op of ops) if (op.type === 'put' && op.lease !== undefined) needLease(tables, op.lease);
  return {
    succeeded,
    revision: writeRevision(tables, (revision) => ops.flatMap((op) => applyOp(tables, op, revision))),
  };
}

export function createLease(tables: Tables, ttlMs: number): LeaseId {
  const number = readMeta(tables, 'lastLease') + 1;
  const lease = `lease-${number}`;
  tables.meta.putSync('lastLease', number);
  tables.leases.putSync(lease, ttlMs);
  return lease;
}

export function endLease(tables: Tables, lease: LeaseId): void {
  needLease(tables, lease);
  const keys = [...tables.leaseKeys.getKeys({ start: [lease, ' '], end: [lease, '\x7f'] })].map(
    ([, key]) => key,
  );
  writeRevision(tables, (revision) =>
    keys.flatMap((key) => applyOp(tables, { type: 'delete', key }, revision)),
  );
  tables.leases.removeSync(lease);
}

/**
 * Removes the oldest history: all of it up to and including `through`, and what is beyond the retention.
 * True when there is more to remove than one transaction should.
 */
export function trimHistory(tables: Tables, retention: Retention, through = 0): boolean {
  const revision = readMeta(tables, 'revision');
  const before = readMeta(tables, 'compactRevision');
  let bytes = readMeta(tables, 'historyBytes');
  let compacted = before;
  const tooMuch = (): boolean =>
    compacted < revision &&
    (compacted < through || revision - compacted > retention.revisions || bytes > retention.bytes);
  while (tooMuch() && compacted - before < TRIMMED_PER_COMMIT) {
    compacted += 1;
    bytes -= tables.history.getBinaryFast(compacted)?.length ?? 0;
    tables.history.removeSync(compacted);
  }
  if (compacted !== before) {
    tables.meta.putSync('compactRevision', compacted);
    tables.meta.putSync('historyBytes', bytes);
  }
  return tooMuch();
}

function holds(tables: Tables, { key, modRevision }: Compare): boolean {
  return (tables.current.get(key)?.[2] ?? 0) === modRevision;
}

function needLease(tables: Tables, lease: LeaseId): void {
  if (!tables.leases.doesExist(lease))
    throw new CloisterError('not-found', `There is no lease "${lease.slice(0, 40)}" any more.`);
}

/** Takes the next revision for what `write` changes; none when it changes nothing. Returns the store's revision. */
function writeRevision(tables: Tables, write: (revision: number) => EventRecord[]): number {
  const last = readMeta(tables, 'revision');
  const events = write(last + 1);
  if (events.length === 0) return last;
  tables.history.putSync(last + 1, events);
  const bytes = tables.history.getBinaryFast(last + 1)?.length ?? 0;
  tables.meta.putSync('historyBytes', readMeta(tables, 'historyBytes') + bytes);
  tables.meta.putSync('revision', last + 1);
  return last + 1;
}

function applyOp(tables: Tables, op: Op, revision: number): EventRecord[] {
  if (op.type === 'put') return [applyPut(tables, op, revision)];
  if (op.type === 'delete') return applyDelete(tables, op.key);
  const { start, end } = prefixSpan(op.prefix);
  const keys = [...tables.current.getKeys({ start, ...(end === undefined ? {} : { end }) })];
  return keys.flatMap((key) => applyDelete(tables, key));
}

function applyPut(tables: Tables, op: Extract<Op, { type: 'put' }>, revision: number): EventRecord {
  const before = tables.current.get(op.key);
  const lease = op.lease ?? null;
  const createRevision = before?.[1] ?? revision;
  const version = (before?.[3] ?? 0) + 1;
  const oldLease = before?.[4] ?? null;
  if (oldLease !== null && oldLease !== lease) tables.leaseKeys.removeSync([oldLease, op.key]);
  if (lease !== null && oldLease !== lease) tables.leaseKeys.putSync([lease, op.key], true);
  tables.current.putSync(op.key, [op.value, createRevision, revision, version, lease]);
  return [op.key, op.value, createRevision, version, lease];
}

function applyDelete(tables: Tables, key: string): EventRecord[] {
  const before = tables.current.get(key);
  if (before === undefined) return [];
  if (before[4] !== null) tables.leaseKeys.removeSync([before[4], key]);
  tables.current.removeSync(key);
  return [[key]];
}
