// The embedded store: the suite that all stores pass, and what only a store in a folder promises.
import assert from 'node:assert/strict';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ManualClock } from '@cloister/kit/clock.ts';
import { storeConformance } from './conformance.ts';
import { openEmbeddedStore } from './embedded.ts';
import { collect, put } from './harness.ts';
import { CompactedError, type Op } from './store.ts';

storeConformance('embedded', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-store-'));
  const clock = new ManualClock();
  const store = await openEmbeddedStore({ folder, clock });
  const remove = async (): Promise<void> => {
    await store.close();
    await rm(folder, { recursive: true });
  };
  return { store, passTime: (ms) => clock.advance(ms), remove };
});

async function makeFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-store-'));
  t.after(() => rm(folder, { recursive: true }));
  return folder;
}

test('a folder that is open is refused until it is closed', async (t) => {
  const folder = await makeFolder(t);
  const store = await openEmbeddedStore({ folder });
  await assert.rejects(openEmbeddedStore({ folder }), { code: 'folder.locked' });
  await store.txn({ then: [put('a', '1')] });
  await store.close();
  const again = await openEmbeddedStore({ folder });
  assert.equal((await again.get('a'))?.value, '1');
  await again.close();
});

test('a store that is opened again has its values, revisions, history and compaction', async (t) => {
  const folder = await makeFolder(t);
  const store = await openEmbeddedStore({ folder });
  for (let n = 1; n <= 5; n++) await store.txn({ then: [put('a', `${n}`)] });
  await store.compact(2);
  const before = await store.range({ prefix: '' });
  await store.close();
  const again = await openEmbeddedStore({ folder });
  assert.deepEqual(await again.range({ prefix: '' }), before);
  assert.deepEqual(await again.status(), { revision: 5, compactRevision: 2 });
  assert.equal((await collect(again, { prefix: '', fromRevision: 3 }, 5)).length, 3);
  assert.equal((await again.txn({ then: [put('a', '6')] })).revision, 6);
  await again.close();
});

test('after a restart a lease is there with its whole time again', async (t) => {
  const folder = await makeFolder(t);
  const clock = new ManualClock();
  const store = await openEmbeddedStore({ folder, clock });
  const lease = await store.grantLease(10_000);
  await store.txn({ then: [{ ...put('a', '1'), lease } as Op] });
  await clock.advance(9_000);
  await store.close();
  const again = await openEmbeddedStore({ folder, clock });
  await clock.advance(9_000);
  assert.equal((await again.get('a'))?.lease, lease);
  const watching = collect(again, { prefix: '', fromRevision: 2 }, 2);
  await clock.advance(2_000);
  assert.equal((await watching)[0]?.events[0]?.type, 'delete');
  assert.notEqual(await again.grantLease(10_000), lease);
  await again.close();
});

test('no more history is kept than was asked for, by count and by bytes', async (t) => {
  const folder = await makeFolder(t);
  const store = await openEmbeddedStore({ folder, historyRevisions: 10, historyBytes: 50_000 });
  for (let n = 1; n <= 30; n++) await store.txn({ then: [put('small', `${n}`)] });
  assert.deepEqual(await store.status(), { revision: 30, compactRevision: 20 });
  for (let n = 0; n < 10; n++) await store.txn({ then: [put('large', 'v'.repeat(20_000))] });
  assert.deepEqual(await store.status(), { revision: 40, compactRevision: 38 });
  assert.equal((await store.get('small'))?.value, '30');
  await store.close();
});

test('the files stop growing when the history is bounded', async (t) => {
  const folder = await makeFolder(t);
  const store = await openEmbeddedStore({ folder, historyRevisions: 100 });
  const size = async (): Promise<number> => (await stat(join(folder, 'data.mdb'))).size;
  const rewrite = () =>
    Promise.all(
      Array.from({ length: 2_000 }, (_, n) => store.txn({ then: [put(`k${n % 50}`, 'v'.repeat(2_000))] })),
    );
  await rewrite();
  const early = await size();
  for (let n = 0; n < 4; n++) await rewrite();
  assert.ok((await size()) <= early * 2, `${early} became ${await size()} bytes`);
  await store.close();
});

test('a watcher that is left behind by compaction is told, instead of being held in memory', async (t) => {
  const folder = await makeFolder(t);
  const store = await openEmbeddedStore({ folder, historyRevisions: 300 });
  await store.txn({ then: [put('k', '0')] });
  const watcher = store.watch({ prefix: '', fromRevision: 1 })[Symbol.asyncIterator]();
  assert.equal((await watcher.next()).value?.revision, 1);
  await Promise.all(Array.from({ length: 1_000 }, (_, n) => store.txn({ then: [put('k', `${n}`)] })));
  await assert.rejects(
    watcher.next(),
    (error) => error instanceof CompactedError && error.compactRevision === 701,
  );
  await store.close();
});

test('close waits for the writes under way', async (t) => {
  const folder = await makeFolder(t);
  const store = await openEmbeddedStore({ folder });
  const writes = Promise.all(
    Array.from({ length: 1_000 }, (_, n) => store.txn({ then: [put(`k${n}`, '')] })),
  );
  await store.close();
  assert.equal((await writes).length, 1_000);
  const again = await openEmbeddedStore({ folder });
  assert.equal((await again.range({ prefix: '' })).items.length, 1_000);
  await again.close();
});

test('more writes than may wait are refused, and the rest are done', async (t) => {
  const folder = await makeFolder(t);
  const store = await openEmbeddedStore({ folder });
  const writes = await Promise.allSettled(
    Array.from({ length: 100 }, (_, n) => store.txn({ then: [put(`k${n}`, 'v'.repeat(1_000_000))] })),
  );
  const done = writes.filter(({ status }) => status === 'fulfilled').length;
  assert.ok(done >= 60 && done < 100, `${done} were done`);
  for (const write of writes)
    if (write.status === 'rejected') assert.equal(write.reason.code, 'limit.exceeded');
  assert.equal((await store.range({ prefix: '', limit: 100 })).items.length, done);
  await store.close();
});
