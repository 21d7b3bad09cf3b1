// The control plane's memory: a revisioned key-value store, as an interface with more than one implementation.
// Whatever implements it passes conformance.ts unchanged. Nothing here asks for more than etcd can give.
//
// Keys are printable ASCII without spaces, so that their order is the order of their bytes everywhere. Values are
// text (JSON, in practice), well formed as Unicode. Revisions start at 0 (nothing written yet) and every
// transaction that changes something takes the next one; one that changes nothing takes none.
import { CloisterError } from '@cloister/model/errors.ts';

export const STORE_BOUNDS = {
  keyBytes: 512,
  /** Of one value, encoded as UTF-8. */
  valueBytes: 1_048_576,
  /** Compares, `then` and `else` of a transaction, each. A deleteRange counts as one. */
  opsPerTxn: 1024,
  /** Keys and values of one transaction together. */
  txnBytes: 1_572_864,
  /** Items that one range may return; also the default of `limit`. */
  rangeItems: 10_000,
  leaseTtlMinMs: 1_000,
  leaseTtlMaxMs: 86_400_000,
  /** A lease's keys vanish no later than this after its TTL ran out. */
  leaseLatenessMs: 2_000,
} as const;

export type LeaseId = string;

export interface KeyValue {
  readonly key: string;
  readonly value: string;
  /** The revision in which the key came to be; a delete and a later put make a new one. */
  readonly createRevision: number;
  /** The revision of the newest put. What a compare names. */
  readonly modRevision: number;
  /** How many puts since the key came to be: 1 for a new key. */
  readonly version: number;
  /** The lease that the key vanishes with. */
  readonly lease?: LeaseId;
}

export interface RangeRequest {
  /** Every key that begins with it; '' is every key. Give this, or start and end. */
  readonly prefix?: string;
  /** The first key. */
  readonly start?: string;
  /** The key after the last one: itself not included. */
  readonly end?: string;
  /** 1 to STORE_BOUNDS.rangeItems, which is the default. */
  readonly limit?: number;
  /** From the last key backwards. Default: false. */
  readonly reverse?: boolean;
}

export interface RangeResult {
  /** The revision of the snapshot that all items come from. */
  readonly revision: number;
  readonly items: readonly KeyValue[];
  /** There are more keys than `limit` let through. */
  readonly more: boolean;
}

/** Holds when the key's modRevision is this one; 0: when the key is absent. */
export interface Compare {
  readonly key: string;
  readonly modRevision: number;
}

export type Op =
  /** Without `lease`, a put takes the key out of the lease it was in. */
  | { readonly type: 'put'; readonly key: string; readonly value: string; readonly lease?: LeaseId }
  | { readonly type: 'delete'; readonly key: string }
  /** Every key that begins with the prefix, which must not be ''. */
  | { readonly type: 'deleteRange'; readonly prefix: string };

export interface TxnRequest {
  /** All must hold for `then`. Default: none, which holds. */
  readonly compare?: readonly Compare[];
  readonly then: readonly Op[];
  /** Done when a compare does not hold. Default: nothing. */
  readonly else?: readonly Op[];
}

export interface TxnResult {
  /** Whether every compare held (and so, which ops were done). */
  readonly succeeded: boolean;
  /** The transaction's own revision; when it changed nothing, the store's. */
  readonly revision: number;
}

export interface WatchRequest {
  /** Every key that begins with it; '' is every key. */
  readonly prefix: string;
  /** The first revision of interest, past or future: that of what was read, plus 1. At least 1. */
  readonly fromRevision: number;
  /** Ends the iteration, without an error. */
  readonly signal?: AbortSignal;
}

export type WatchEvent =
  | ({ readonly type: 'put' } & KeyValue)
  /** createRevision and version are 0: the key is no more. modRevision is the revision of the delete. */
  | {
      readonly type: 'delete';
      readonly key: string;
      readonly createRevision: 0;
      readonly modRevision: number;
      readonly version: 0;
    };

export interface WatchBatch {
  readonly revision: number;
  /** All events of this revision under the prefix, in the order of the transaction's ops; at least one. */
  readonly events: readonly WatchEvent[];
}

export interface StoreStatus {
  readonly revision: number;
  /** History up to and including this revision is gone. 0: none is. */
  readonly compactRevision: number;
}

/**
 * Every method may throw CloisterError: `request.invalid` or `request.too-large` for what breaks STORE_BOUNDS,
 * `limit.exceeded` when too much is waiting, `unavailable` when the store is closed or cannot reach its disk or
 * its servers (a transaction then may or may not have happened: read before trying again).
 */
export interface Store {
  /** The key's current value, or undefined. */
  get(key: string): Promise<KeyValue | undefined>;

  /**
   * Keys in order, from one snapshot. To read more than one page and then follow: watch from the first page's
   * revision + 1, and ignore events that are not newer than the item already held.
   */
  range(request: RangeRequest): Promise<RangeResult>;

  /**
   * Checks and writes at once, all or nothing, in one revision. When it returns, the change survives power loss.
   * Within one list of ops a key may be put once, and not both put and deleted. Throws `not-found` when a put
   * names a lease that is not there; nothing is written then.
   */
  txn(request: TxnRequest): Promise<TxnResult>;

  /**
   * What changes, in order: all of one revision in one batch, each revision once, without a gap between history
   * and now. Memory is bounded however slow the reader is. Ends when the signal is aborted or the store closes;
   * throws CompactedError, at any time, when the next revision for this reader is no longer in the history.
   * Nothing happens, and no error is thrown, before the iteration begins.
   */
  watch(request: WatchRequest): AsyncIterable<WatchBatch>;

  /** Forgets history up to and including the revision; current values stay. Nothing happens if it already is forgotten. */
  compact(revision: number): Promise<void>;

  /**
   * A lease that ends after `ttlMs` unless kept alive; its keys are deleted then, in one revision. The TTL may be
   * rounded up to whole seconds. After a restart of the store every lease has its whole TTL again.
   */
  grantLease(ttlMs: number): Promise<LeaseId>;
  /** The lease has its whole TTL again from now. Throws `not-found` when it has ended. */
  keepAlive(lease: LeaseId): Promise<void>;
  /** Ends the lease and deletes its keys now. Throws `not-found` when it has ended already. */
  revokeLease(lease: LeaseId): Promise<void>;

  status(): Promise<StoreStatus>;

  /** Waits for transactions under way, ends every watch; anything later throws `unavailable`. May be called twice. */
  close(): Promise<void>;
}

/** The history asked for is no longer there: read everything again, then watch from that revision + 1. */
export class CompactedError extends CloisterError {
  readonly compactRevision: number;

  constructor(fromRevision: number, compactRevision: number) {
    super(
      'store.compacted',
      `Could not watch from revision ${fromRevision}: the history up to ${compactRevision} has been compacted.`,
    );
    this.name = 'CompactedError';
    this.compactRevision = compactRevision;
  }
}
