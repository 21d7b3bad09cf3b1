// What a caller may ask of a store, checked before anything is done. Every implementation uses these, so that
// they refuse the same requests with the same words.
import { CloisterError } from '@cloister/model/errors.ts';
import { type Op, type RangeRequest, STORE_BOUNDS, type TxnRequest } from './store.ts';

const PRINTABLE = /^[!-~]*$/;

/** The bounds of a range: `start` included, `end` not; an `end` of undefined is after every key. */
export interface Span {
  readonly start: string;
  readonly end: string | undefined;
}

export function checkKey(key: string): void {
  if (key === '') throw invalid('A key must not be empty.');
  checkPrefix(key);
}

export function checkPrefix(prefix: string): void {
  if (typeof prefix !== 'string' || !PRINTABLE.test(prefix)) {
    throw invalid(`The key ${JSON.stringify(prefix)?.slice(0, 80)} is not printable ASCII without spaces.`);
  }
  if (prefix.length > STORE_BOUNDS.keyBytes) {
    throw new CloisterError(
      'request.too-large',
      `The key "${prefix.slice(0, 80)}…" is longer than ${STORE_BOUNDS.keyBytes} bytes.`,
    );
  }
}

export function checkRevision(revision: number, least: number): void {
  if (!Number.isSafeInteger(revision) || revision < least) {
    throw invalid(`${revision} is not a revision; they are whole numbers from ${least}.`);
  }
}

/** Checks a range and its limit; a prefix becomes the span of its keys. */
export function spanOf(request: RangeRequest): Span {
  const limit = request.limit ?? 1;
  if (!Number.isInteger(limit) || limit < 1 || limit > STORE_BOUNDS.rangeItems) {
    throw invalid(`The limit ${limit} of a range is not between 1 and ${STORE_BOUNDS.rangeItems}.`);
  }
  const { prefix, start, end } = request;
  if (prefix !== undefined) {
    if (start !== undefined || end !== undefined)
      throw invalid('A range has a prefix, or start and end, not both.');
    checkPrefix(prefix);
    return prefixSpan(prefix);
  }
  if (start === undefined || end === undefined) throw invalid('A range needs a prefix, or start and end.');
  checkPrefix(start);
  checkPrefix(end);
  return { start, end };
}

/** Keys end at "~", so the last character plus one is still a character. */
export function prefixSpan(prefix: string): Span {
  if (prefix === '') return { start: '', end: undefined };
  const last = prefix.length - 1;
  return { start: prefix, end: prefix.slice(0, last) + String.fromCharCode(prefix.charCodeAt(last) + 1) };
}

/** Checks a whole transaction. Returns its size in bytes, for whoever counts what waits. */
export function checkTxn(request: TxnRequest): number {
  const compare = request.compare ?? [];
  if (compare.length > STORE_BOUNDS.opsPerTxn) throw tooLarge('compares', compare.length);
  for (const { key, modRevision } of compare) {
    checkKey(key);
    checkRevision(modRevision, 0);
  }
  const bytes =
    compare.reduce((sum, { key }) => sum + key.length, 0) +
    checkOps(request.then) +
    checkOps(request.else ?? []);
  if (bytes > STORE_BOUNDS.txnBytes) {
    throw new CloisterError(
      'request.too-large',
      `A transaction of ${bytes} bytes is larger than ${STORE_BOUNDS.txnBytes}.`,
    );
  }
  return bytes;
}

export function checkTtl(ttlMs: number): void {
  const { leaseTtlMinMs, leaseTtlMaxMs } = STORE_BOUNDS;
  if (!Number.isInteger(ttlMs) || ttlMs < leaseTtlMinMs || ttlMs > leaseTtlMaxMs) {
    throw invalid(`The TTL of a lease must be ${leaseTtlMinMs} to ${leaseTtlMaxMs} ms, not ${ttlMs}.`);
  }
}

function checkOps(ops: readonly Op[]): number {
  if (ops.length > STORE_BOUNDS.opsPerTxn) throw tooLarge('operations', ops.length);
  const puts = new Set<string>();
  let bytes = 0;
  for (const op of ops) {
    if (op.type === 'put') {
      checkKey(op.key);
      if (puts.has(op.key)) throw invalid(`A transaction puts "${op.key}" twice.`);
      puts.add(op.key);
      bytes += op.key.length + checkValue(op.key, op.value);
    } else if (op.type === 'delete') {
      checkKey(op.key);
      bytes += op.key.length;
    } else {
      checkKey(op.prefix);
      bytes += op.prefix.length;
    }
  }
  checkDeletes(ops, puts);
  return bytes;
}

/** What both puts and deletes a key would depend on an order that not every store keeps. */
function checkDeletes(ops: readonly Op[], puts: ReadonlySet<string>): void {
  for (const op of ops) {
    if (op.type === 'delete' && puts.has(op.key))
      throw invalid(`A transaction both puts and deletes "${op.key}".`);
    if (op.type !== 'deleteRange') continue;
    for (const key of puts) {
      if (key.startsWith(op.prefix))
        throw invalid(`A transaction both puts "${key}" and deletes all of "${op.prefix}".`);
    }
  }
}

function checkValue(key: string, value: string): number {
  if (typeof value !== 'string' || !value.isWellFormed())
    throw invalid(`The value of "${key}" is not well-formed text.`);
  const bytes = Buffer.byteLength(value);
  if (bytes > STORE_BOUNDS.valueBytes) {
    throw new CloisterError(
      'request.too-large',
      `The value of "${key}" has ${bytes} bytes; at most ${STORE_BOUNDS.valueBytes} fit.`,
    );
  }
  return bytes;
}

function tooLarge(what: string, count: number): CloisterError {
  return new CloisterError(
    'request.too-large',
    `A transaction of ${count} ${what} is larger than ${STORE_BOUNDS.opsPerTxn}.`,
  );
}

function invalid(message: string): CloisterError {
  return new CloisterError('request.invalid', message);
}
