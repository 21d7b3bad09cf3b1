// The state in memory: whatever becomes of the watch, it goes forward, and says all that changed.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '@cloister/kit/clock.ts';
import { silentLogger } from '@cloister/kit/log.ts';
import { type JobId, newJobId, newTenantId } from '@cloister/model/ids.ts';
import { openEmbeddedStore } from '@cloister/store/embedded.ts';
import type { Op, Store } from '@cloister/store/store.ts';
import { Follower } from './follow.ts';
import { keys } from './keys.ts';

const limit = { timeout: 20_000 };
const tenantId = newTenantId();

async function openStore(t: TestContext): Promise<Store> {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-follow-'));
  const store = await openEmbeddedStore({ folder, historyRevisions: 20 });
  t.after(async () => {
    await store.close();
    await rm(folder, { recursive: true });
  });
  return store;
}

/** The store as a follower uses it, with something done before each page and each batch. */
const slowed = (
  store: Store,
  beforePage: () => Promise<unknown>,
  beforeBatch: () => Promise<unknown>,
): Store =>
  ({
    range: async (request) => {
      await beforePage();
      return await store.range({ ...request, limit: 1 });
    },
    watch: async function* (request) {
      for await (const batch of store.watch(request)) {
        await beforeBatch();
        yield batch;
      }
    },
  }) as Pick<Store, 'range' | 'watch'> as Store;

const putJob = (id: JobId, name: string): Op => ({
  type: 'put',
  key: keys.job(id),
  value: JSON.stringify({ id, tenantId, name, spec: {} }),
});

test('what changes while many pages are read is never seen to go back', limit, async (t) => {
  const store = await openStore(t);
  const ids = [newJobId(), newJobId(), newJobId()].toSorted();
  const last = ids[2]!;
  await store.txn({ then: ids.map((id, index) => putJob(id, `${index}`)) });
  let pages = 0;
  const beforePage = async (): Promise<void> => {
    pages += 1;
    if (pages !== 2) return;
    for (const name of ['newer', 'newest']) await store.txn({ then: [putJob(last, name)] });
  };
  const follower = new Follower(
    slowed(store, beforePage, async () => {}),
    silentLogger,
    systemClock,
  );
  t.after(() => follower.close());
  const seen: unknown[] = [];
  follower.listen(() => seen.push(follower.state.jobs.get(last)?.record.name));
  await follower.start();
  const { revision } = await store.txn({ then: [putJob(newJobId(), 'another')] });
  await follower.reach(revision);
  assert.deepEqual(new Set(seen), new Set(['newest']));
  assert.equal(follower.state.jobByName(tenantId, '2'), undefined);
  assert.equal(follower.state.jobs.size, 4);
});

test(
  'a follower that was left behind announces what is gone, and the events that it missed',
  limit,
  async (t) => {
    const store = await openStore(t);
    const held = Promise.withResolvers<void>();
    const gate = Promise.withResolvers<void>();
    const beforeBatch = async (): Promise<void> => {
      held.resolve();
      await gate.promise;
    };
    const follower = new Follower(
      slowed(store, async () => {}, beforeBatch),
      silentLogger,
      systemClock,
    );
    t.after(() => follower.close());
    const [gone, other] = [newJobId(), newJobId()];
    await store.txn({ then: [putJob(gone, 'gone')] });
    await follower.start();
    const jobs: JobId[] = [];
    const events: unknown[] = [];
    follower.listen((change) => {
      jobs.push(...change.jobs);
      events.push(...change.events.map(({ event }) => event.subject));
    });
    await store.txn({ then: [putJob(other, 'first')] });
    await held.promise; // with that one; what comes now is compacted before it goes on
    await store.txn({
      then: [
        { type: 'delete', key: keys.job(gone) },
        {
          type: 'put',
          key: keys.events('cluster', 1, '1'),
          value: '[{"at":1,"type":"node.ready","subject":"x"}]',
        },
      ],
    });
    let revision = 0;
    for (let n = 0; n < 50; n++) ({ revision } = await store.txn({ then: [putJob(other, `${n}`)] }));
    const { compactRevision } = await store.status();
    assert.ok(compactRevision > 10, 'the follower cannot go on from where it was');
    gate.resolve();
    await follower.reach(revision);
    assert.ok(jobs.includes(gone));
    assert.deepEqual(events, ['x']);
    assert.equal(follower.state.jobs.size, 1);
  },
);
