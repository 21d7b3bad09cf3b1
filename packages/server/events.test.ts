// The logs of events: what is kept of whose, and who is given it.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLogger } from '@cloister/kit/log.ts';
import { openEmbeddedStore } from '@cloister/store/embedded.ts';
import { startTestCluster, testClient } from './harness.ts';
import { startServer } from './server.ts';

const limit = { timeout: 30_000 };

test('a busy tenant pushes out nothing but its own events', limit, async () => {
  await using cluster = await startTestCluster({ keepEvents: 20 });
  const [quiet, busy] = [await cluster.newTenant('quiet'), await cluster.newTenant('busy')];
  await cluster.newAgent('one');
  await cluster.run({ name: 'only', nodeLabels: { no: 'where' } }, quiet);
  for (let index = 0; index < 60; index++) await cluster.run({ name: `job-${index}` }, busy);
  const namesFor = async (token: string): Promise<unknown[]> => {
    const names: unknown[] = [];
    for await (const { type, name } of cluster.lines('/v1/events', token)) names.push(`${type} ${name}`);
    return names;
  };
  assert.deepEqual(await namesFor(quiet), ['job.created only']);
  assert.deepEqual(await namesFor(cluster.operator), ['node.joined one', 'node.ready one']);
  const kept = (await namesFor(busy)).length;
  assert.ok(kept >= 20 && kept <= 30, `${kept} events`);
});

test('whatever is kept is given, and then what comes, however much there is', limit, async () => {
  const dataDir = await mkdtemp(join(tmpdir(), 'cloister-server-'));
  const events = Array.from({ length: 12_000 }, (_, at) => ({ at, type: 'node.ready', subject: 'nod-x' }));
  const store = await openEmbeddedStore({ folder: join(dataDir, 'store') });
  await store.txn({
    then: [{ type: 'put', key: 'events/cluster/000000000000001-x', value: JSON.stringify(events) }],
  });
  await store.close();
  const server = await startServer(
    { dataDir, api: { port: 0 }, link: { port: 0 }, keepEvents: 20_000 },
    { logger: silentLogger },
  );
  await using cluster = await testClient(server, dataDir, async () => {
    await server.close();
    await rm(dataDir, { recursive: true, force: true });
  });
  let next = 0;
  for await (const { at, type } of cluster.lines('/v1/events?follow=true')) {
    if (type === 'job.created') break;
    assert.equal(at, next);
    next += 1;
    if (next === 12_000) await cluster.run({});
  }
  assert.equal(next, 12_000);
});
