// What every implementation's watch and compaction must do: a part of conformance.ts.
import assert from 'node:assert/strict';
import { type Check, collect, hasCode, put } from './harness.ts';
import { CompactedError } from './store.ts';

export function testWatches(check: Check): void {
  check(
    'a watch tells each transaction once, whole and in order, from the past into the present',
    async (store) => {
      const first = await store.txn({ then: [put('a/1', '1'), put('b', '1'), put('a/2', '1')] });
      await store.txn({ then: [put('b', '2')] });
      const third = await store.txn({ then: [{ type: 'deleteRange', prefix: 'a/' }, put('a', '1')] });
      const watching = collect(store, { prefix: 'a/', fromRevision: first.revision }, third.revision + 2);
      await store.txn({ then: [put('b', '3')] });
      const last = await store.txn({ then: [put('a/1', '2')] });
      const batches = await watching;
      assert.deepEqual(
        batches.map(({ revision }) => revision),
        [first.revision, third.revision, last.revision],
      );
      assert.deepEqual(
        batches.map(({ events }) => events.map(({ type, key }) => `${type} ${key}`)),
        [['put a/1', 'put a/2'], ['delete a/1', 'delete a/2'], ['put a/1']],
      );
      assert.deepEqual(batches[1]?.events[0], {
        type: 'delete',
        key: 'a/1',
        createRevision: 0,
        modRevision: third.revision,
        version: 0,
      });
      assert.deepEqual(batches[2]?.events[0], { type: 'put', ...(await store.get('a/1')) });
    },
  );

  check('a watch that begins in the midst of many writes misses none and repeats none', async (store) => {
    const { revision } = await store.txn({ then: [put('k', '0')] });
    const writes = Array.from({ length: 500 }, (_, n) => store.txn({ then: [put('k', `${n + 1}`)] }));
    const watches = [1, 100, 400].map((after) =>
      collect(store, { prefix: '', fromRevision: revision + after }, revision + 500),
    );
    await Promise.all(writes);
    for (const [n, batches] of (await Promise.all(watches)).entries()) {
      const after = [1, 100, 400][n] ?? 0;
      assert.deepEqual(
        batches.map((batch) => batch.revision),
        Array.from({ length: 501 - after }, (_, i) => revision + after + i),
      );
    }
  });

  check('a watch from a future revision begins there', async (store) => {
    const { revision } = await store.status();
    const watching = collect(store, { prefix: '', fromRevision: revision + 3 }, revision + 3);
    for (let n = 0; n < 3; n++) await store.txn({ then: [put('k', `${n}`)] });
    assert.deepEqual(
      (await watching).map((batch) => batch.revision),
      [revision + 3],
    );
  });

  check('a watch ends when its signal is aborted or the store closes', async (store) => {
    const { revision } = await store.status();
    const abort = new AbortController();
    const aborted = collect(
      store,
      { prefix: '', fromRevision: revision + 1, signal: abort.signal },
      revision + 9,
    );
    const closed = collect(store, { prefix: '', fromRevision: revision + 1 }, revision + 9);
    await store.txn({ then: [put('a', '1')] });
    abort.abort();
    assert.ok((await aborted).length <= 1);
    await store.close();
    assert.ok((await closed).length <= 1);
    await assert.rejects(store.get('a'), hasCode('unavailable'));
    await store.close();
  });

  check('compaction keeps current values, and refuses watches from what is gone', async (store) => {
    const old = await store.txn({ then: [put('a', '1'), put('b', '1')] });
    const middle = await store.txn({ then: [put('a', '2')] });
    const last = await store.txn({ then: [put('c', '1')] });
    await store.compact(middle.revision);
    await store.compact(old.revision);
    assert.equal((await store.status()).compactRevision, middle.revision);
    assert.deepEqual(
      (await store.range({ prefix: '' })).items.map(({ key, value, version }) => [key, value, version]),
      [
        ['a', '2', 2],
        ['b', '1', 1],
        ['c', '1', 1],
      ],
    );
    for (const fromRevision of [old.revision, middle.revision]) {
      await assert.rejects(collect(store, { prefix: '', fromRevision }, last.revision), (error) => {
        return error instanceof CompactedError && error.compactRevision === middle.revision;
      });
    }
    const batches = await collect(store, { prefix: '', fromRevision: middle.revision + 1 }, last.revision);
    assert.deepEqual(
      batches.map(({ revision }) => revision),
      [last.revision],
    );
  });
}
