// What every implementation of the store must do, as tests. An implementation's own test file calls
// storeConformance() with a way to open an empty store; nothing here knows which one it is.
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { testAgainstModel } from './conformanceModel.ts';
import { testWatches } from './conformanceWatch.ts';
import { type Body, type Check, collect, hasCode, put, type StoreUnderTest } from './harness.ts';
import { type Op, STORE_BOUNDS, type Store } from './store.ts';

/** Registers the suite. `openStore` gives a store without keys; its revision may be any. */
export function storeConformance(name: string, openStore: () => Promise<StoreUnderTest>): void {
  const check = (sentence: string, body: Body): void => {
    test(`${name}: ${sentence}`, { timeout: 60_000 }, async (t: TestContext) => {
      const under = await openStore();
      t.after(() => under.remove());
      await body(under.store, under);
    });
  };
  testReads(check);
  testTxns(check);
  testBounds(check);
  testWatches(check);
  testLeases(check);
  testAgainstModel(check);
}

function testReads(check: Check): void {
  check('a key is absent until it is put, and says when and how often it was', async (store) => {
    assert.equal(await store.get('a'), undefined);
    const first = await store.txn({ then: [put('a', 'één')] });
    const second = await store.txn({ then: [put('a', '')] });
    assert.deepEqual(await store.get('a'), {
      key: 'a',
      value: '',
      createRevision: first.revision,
      modRevision: second.revision,
      version: 2,
    });
  });

  check('a key that was deleted and put again begins anew', async (store) => {
    await store.txn({ then: [put('a', '1')] });
    await store.txn({ then: [{ type: 'delete', key: 'a' }] });
    const { revision } = await store.txn({ then: [put('a', '2')] });
    assert.deepEqual(await store.get('a'), {
      key: 'a',
      value: '2',
      createRevision: revision,
      modRevision: revision,
      version: 1,
    });
  });

  check(
    'a range has exactly the keys under its prefix, or from its start to before its end, in byte order',
    async (store) => {
      const { revision } = await store.txn({
        then: ['a/', 'a/1', 'a/Z', 'a/z', 'a/~', 'a0', 'A/1', 'b'].map((key) => put(key, key)),
      });
      const keys = async (request: Parameters<Store['range']>[0]) =>
        (await store.range(request)).items.map(({ key }) => key);
      assert.deepEqual(await keys({ prefix: 'a/' }), ['a/', 'a/1', 'a/Z', 'a/z', 'a/~']);
      assert.deepEqual(await keys({ prefix: 'a/', reverse: true }), ['a/~', 'a/z', 'a/Z', 'a/1', 'a/']);
      assert.deepEqual(await keys({ start: 'a/1', end: 'a0' }), ['a/1', 'a/Z', 'a/z', 'a/~']);
      assert.deepEqual(await keys({ start: 'a/1', end: 'a0', reverse: true }), ['a/~', 'a/z', 'a/Z', 'a/1']);
      assert.deepEqual(await keys({ prefix: '' }), ['A/1', 'a/', 'a/1', 'a/Z', 'a/z', 'a/~', 'a0', 'b']);
      assert.deepEqual(await keys({ prefix: '', limit: 2, reverse: true }), ['b', 'a0']);
      assert.equal((await store.range({ prefix: 'nothing' })).revision, revision);
    },
  );

  check('a limited range says whether there is more', async (store) => {
    await store.txn({ then: ['a', 'b', 'c'].map((key) => put(key, '')) });
    const two = await store.range({ prefix: '', limit: 2 });
    assert.deepEqual([two.items.length, two.more], [2, true]);
    assert.equal((await store.range({ prefix: '', limit: 3 })).more, false);
  });

  check('a range never shows half of a transaction', async (store) => {
    let done = false;
    const writer = (async () => {
      for (let n = 0; n < 100; n++) await store.txn({ then: [put('x', `${n}`), put('y', `${n}`)] });
      done = true;
    })();
    while (!done) {
      const { revision, items } = await store.range({ prefix: '' });
      assert.equal(items[0]?.value, items[1]?.value);
      for (const item of items) assert.ok(item.modRevision <= revision);
      await new Promise(setImmediate);
    }
    await writer;
  });
}

function testTxns(check: Check): void {
  check(
    'a transaction whose compares hold does "then", another does "else", each in one revision',
    async (store) => {
      const { revision } = await store.txn({
        compare: [{ key: 'a', modRevision: 0 }],
        then: [put('a', '1'), put('b', '1')],
      });
      const missed = await store.txn({
        compare: [{ key: 'a', modRevision: 0 }],
        then: [put('a', '2')],
        else: [put('c', '1')],
      });
      assert.equal(missed.succeeded, false);
      assert.ok(missed.revision > revision);
      const { items } = await store.range({ prefix: '' });
      assert.deepEqual(
        items.map(({ key, value, modRevision }) => [key, value, modRevision]),
        [
          ['a', '1', revision],
          ['b', '1', revision],
          ['c', '1', missed.revision],
        ],
      );
    },
  );

  check('one compare of many that does not hold is enough', async (store) => {
    const { revision } = await store.txn({ then: [put('a', '1'), put('b', '1')] });
    const compare = [
      { key: 'a', modRevision: revision },
      { key: 'b', modRevision: revision - 1 },
    ];
    assert.equal((await store.txn({ compare, then: [put('a', '2')] })).succeeded, false);
    assert.equal((await store.get('a'))?.value, '1');
  });

  check('a transaction that changes nothing takes no revision', async (store) => {
    const { revision } = await store.txn({ then: [put('a', '1')] });
    const nothing = await store.txn({
      then: [
        { type: 'delete', key: 'b' },
        { type: 'deleteRange', prefix: 'c' },
      ],
    });
    const missed = await store.txn({ compare: [{ key: 'a', modRevision: 0 }], then: [put('a', '2')] });
    assert.deepEqual(
      [nothing, missed],
      [
        { succeeded: true, revision },
        { succeeded: false, revision },
      ],
    );
  });

  check('of many who put a key that is absent at once, one succeeds', async (store) => {
    const tries = Array.from({ length: 50 }, (_, n) =>
      store.txn({ compare: [{ key: 'lock', modRevision: 0 }], then: [put('lock', `${n}`)] }),
    );
    const results = await Promise.all(tries);
    assert.equal(results.filter(({ succeeded }) => succeeded).length, 1);
    assert.equal((await store.get('lock'))?.value, `${results.findIndex(({ succeeded }) => succeeded)}`);
  });

  check('increments that repeat when they lost a race are all counted', async (store) => {
    const increment = async (): Promise<void> => {
      for (;;) {
        const now = await store.get('n');
        const then = [put('n', `${Number(now?.value ?? 0) + 1}`)];
        if (
          (await store.txn({ compare: [{ key: 'n', modRevision: now?.modRevision ?? 0 }], then })).succeeded
        )
          return;
      }
    };
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (let n = 0; n < 10; n++) await increment();
      }),
    );
    assert.equal((await store.get('n'))?.value, '80');
  });

  check('deleteRange deletes all under its prefix and nothing beside it', async (store) => {
    await store.txn({ then: ['a', 'a/1', 'a/2', 'a0'].map((key) => put(key, '')) });
    await store.txn({ then: [{ type: 'deleteRange', prefix: 'a/' }] });
    assert.deepEqual(
      (await store.range({ prefix: '' })).items.map(({ key }) => key),
      ['a', 'a0'],
    );
  });
}

function testBounds(check: Check): void {
  check('what is at a bound is taken, and what is beyond it refused', async (store) => {
    const { keyBytes, valueBytes, opsPerTxn } = STORE_BOUNDS;
    const keys = Array.from({ length: opsPerTxn + 1 }, (_, n) => `k${n}`);
    await store.txn({ then: [put('k'.repeat(keyBytes), 'v'.repeat(valueBytes))] });
    assert.equal((await store.get('k'.repeat(keyBytes)))?.value.length, valueBytes);
    await store.txn({ then: keys.slice(1).map((key) => put(key, '')) });
    const tooLarge = [
      [put('k'.repeat(keyBytes + 1), '')],
      [put('a', 'v'.repeat(valueBytes + 1))],
      [put('a', 'é'.repeat(valueBytes / 2 + 1))],
      keys.map((key) => put(key, '')),
      [put('a', 'v'.repeat(valueBytes)), put('b', 'v'.repeat(valueBytes))],
    ];
    for (const then of tooLarge) await assert.rejects(store.txn({ then }), hasCode('request.too-large'));
    assert.equal(await store.get('a'), undefined);
  });

  check('what cannot mean the same everywhere is refused', async (store) => {
    const invalid: Op[][] = [
      [put('', '')],
      [put('a b', '')],
      [put('é', '')],
      [put('a\0', '')],
      [put('a', '\ud800')],
      [put('a', '1'), put('a', '2')],
      [put('a', '1'), { type: 'delete', key: 'a' }],
      [{ type: 'deleteRange', prefix: '' }],
      [{ type: 'deleteRange', prefix: 'a' }, put('ab', '1')],
    ];
    for (const then of invalid)
      await assert.rejects(store.txn({ then }), hasCode('request.invalid'), JSON.stringify(then));
    await assert.rejects(store.range({ prefix: '', limit: 0 }), hasCode('request.invalid'));
    await assert.rejects(store.range({ prefix: '', start: 'a' }), hasCode('request.invalid'));
    await assert.rejects(store.grantLease(1), hasCode('request.invalid'));
    const { revision } = await store.status();
    await assert.rejects(store.compact(revision + 1), hasCode('request.invalid'));
  });
}

function testLeases(check: Check): void {
  check(
    'keys vanish with their lease in one revision when its time is over, and a lease kept alive stays',
    async (store, under) => {
      const [kept, left] = [await store.grantLease(4_000), await store.grantLease(4_000)];
      const { revision } = await store.txn({
        then: [
          { ...put('a', '1'), lease: left } as Op,
          { ...put('b', '1'), lease: left } as Op,
          { ...put('c', '1'), lease: kept } as Op,
        ],
      });
      assert.equal((await store.get('c'))?.lease, kept);
      const watching = collect(store, { prefix: '', fromRevision: revision + 1 }, revision + 1);
      await under.passTime(2_500);
      await store.keepAlive(kept);
      await under.passTime(2_000 + STORE_BOUNDS.leaseLatenessMs / 2);
      assert.deepEqual(
        (await watching)[0]?.events.map(({ type, key }) => `${type} ${key}`),
        ['delete a', 'delete b'],
      );
      assert.equal((await store.get('c'))?.value, '1');
      await assert.rejects(store.keepAlive(left), hasCode('not-found'));
    },
  );

  check('a revoked lease takes its keys along at once, but not those put again without it', async (store) => {
    const lease = await store.grantLease(60_000);
    await store.txn({ then: [{ ...put('a', '1'), lease } as Op, { ...put('b', '1'), lease } as Op] });
    await store.txn({ then: [put('b', '2')] });
    await store.revokeLease(lease);
    assert.deepEqual(
      (await store.range({ prefix: '' })).items.map(({ key }) => key),
      ['b'],
    );
    await assert.rejects(store.revokeLease(lease), hasCode('not-found'));
  });

  check('a put that names no living lease is refused with all of its transaction', async (store) => {
    const lease = await store.grantLease(60_000);
    await store.revokeLease(lease);
    await assert.rejects(
      store.txn({ then: [put('a', '1'), { ...put('b', '1'), lease } as Op] }),
      hasCode('not-found'),
    );
    assert.equal(await store.get('a'), undefined);
  });
}
