// The law of the store: whatever is done to it, it answers as a map would that counts its changes.
import assert from 'node:assert/strict';
import fc from 'fast-check';
import type { Check } from './harness.ts';
import type { KeyValue, Op, Store, TxnRequest, WatchBatch, WatchEvent } from './store.ts';

const KEYS = ['a', 'a/1', 'a/2', 'b/1', 'b/2'];
const PREFIXES = ['a', 'a/', 'b/'];
const RUNS = 40;

/** A map that counts. Slow and plain on purpose: it is what the others are measured by. */
class Model {
  readonly current = new Map<string, KeyValue>();
  readonly history: WatchBatch[] = [];
  revision: number;

  constructor(revision: number) {
    this.revision = revision;
  }

  apply({ compare = [], then, else: otherwise = [] }: TxnRequest): boolean {
    const succeeded = compare.every(
      ({ key, modRevision }) => (this.current.get(key)?.modRevision ?? 0) === modRevision,
    );
    const events = (succeeded ? then : otherwise).flatMap((op) => this.#applyOp(op, this.revision + 1));
    if (events.length > 0) {
      this.revision += 1;
      this.history.push({ revision: this.revision, events });
    }
    return succeeded;
  }

  range(prefix: string): KeyValue[] {
    return [...this.current.values()]
      .filter(({ key }) => key.startsWith(prefix))
      .sort((a, b) => (a.key < b.key ? -1 : 1));
  }

  #applyOp(op: Op, revision: number): WatchEvent[] {
    if (op.type === 'put') {
      const before = this.current.get(op.key);
      const { key, value } = op;
      const item = {
        key,
        value,
        createRevision: before?.createRevision ?? revision,
        modRevision: revision,
        version: (before?.version ?? 0) + 1,
      };
      this.current.set(key, item);
      return [{ type: 'put', ...item }];
    }
    const keys = op.type === 'delete' ? [op.key] : this.range(op.prefix).map(({ key }) => key);
    return keys
      .filter((key) => this.current.delete(key))
      .map((key) => ({ type: 'delete', key, createRevision: 0, modRevision: revision, version: 0 }));
  }
}

const anyKey = fc.constantFrom(...KEYS);
const anyPut = fc.record({
  type: fc.constant('put' as const),
  key: anyKey,
  value: fc.string({ unit: 'grapheme', maxLength: 8 }),
});
const anyOps: fc.Arbitrary<readonly Op[]> = fc
  .array(
    fc.oneof(
      { weight: 4, arbitrary: anyPut },
      { weight: 2, arbitrary: fc.record({ type: fc.constant('delete' as const), key: anyKey }) },
      {
        weight: 1,
        arbitrary: fc.record({
          type: fc.constant('deleteRange' as const),
          prefix: fc.constantFrom(...PREFIXES),
        }),
      },
    ),
    { maxLength: 4 },
  )
  .filter(isOneMeaning);

/** How a compare is made from the state at its time: right, wrong, or absent. */
const anyCompare = fc.record({ key: anyKey, guess: fc.constantFrom('right', 'right', 'wrong', 'absent') });
const anyStep = fc.record({ compare: fc.array(anyCompare, { maxLength: 2 }), then: anyOps, else: anyOps });

export function testAgainstModel(check: Check): void {
  check('any transactions leave what a map that counts would have, and the same history', async (store) => {
    const property = fc.asyncProperty(fc.array(anyStep, { maxLength: 25 }), async (steps) => {
      await compareWithModel(
        store,
        steps.map(({ compare, ...ops }) => (model: Model) => ({
          ...ops,
          compare: compare.map(({ key, guess }) => ({ key, modRevision: guessRevision(model, key, guess) })),
        })),
      );
    });
    await fc.assert(property, { numRuns: RUNS });
  });
}

async function compareWithModel(
  store: Store,
  steps: readonly ((model: Model) => TxnRequest)[],
): Promise<void> {
  await store.txn({ then: KEYS.map((key) => ({ type: 'delete', key })) });
  const model = new Model((await store.status()).revision);
  const firstRevision = model.revision + 1;
  for (const step of steps) {
    const request = step(model);
    const result = await store.txn(request);
    const succeeded = model.apply(request);
    assert.deepEqual(result, { succeeded, revision: model.revision });
  }
  for (const prefix of ['', ...PREFIXES]) {
    assert.deepEqual(await store.range({ prefix }), {
      revision: model.revision,
      items: model.range(prefix),
      more: false,
    });
  }
  const seen: WatchBatch[] = [];
  if (model.history.length > 0) {
    for await (const batch of store.watch({ prefix: '', fromRevision: firstRevision })) {
      seen.push(batch);
      if (batch.revision === model.revision) break;
    }
  }
  assert.deepEqual(seen, model.history);
}

function guessRevision(model: Model, key: string, guess: string): number {
  const right = model.current.get(key)?.modRevision ?? 0;
  if (guess === 'absent') return 0;
  return guess === 'right' ? right : right + 1;
}

/** Keeps out what bounds.ts refuses. */
function isOneMeaning(ops: readonly Op[]): boolean {
  const puts = ops.flatMap((op) => (op.type === 'put' ? [op.key] : []));
  const deleted = (key: string): boolean =>
    ops.some(
      (op) =>
        (op.type === 'delete' && op.key === key) || (op.type === 'deleteRange' && key.startsWith(op.prefix)),
    );
  return new Set(puts).size === puts.length && !puts.some(deleted);
}
