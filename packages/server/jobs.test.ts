// Jobs from end to end: API, scheduler, a test agent, and back.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLogger } from '@cloister/kit/log.ts';
import type { Job } from '@cloister/model/job.ts';
import { openEmbeddedStore } from '@cloister/store/embedded.ts';
import { startTestCluster, type TestCluster, testClient } from './harness.ts';
import { startServer } from './server.ts';

const limit = { timeout: 30_000 };

test('a job is placed, runs, ends with its exit code, and is done', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one');
  const { job, allocations } = await cluster.run({ name: 'hello', command: ['true'] });
  assert.equal(job.spec.resources.memoryMiB, 256, 'defaults are filled in, also inside');
  const id = allocations[0]!.id;
  const running = await cluster.whenAllocation(id, ({ state }) => state === 'running');
  assert.equal(running.nodeId, agent.identity.nodeId);
  await agent.report(id, 'exited', { exitCode: 3, timelineJson: '{"endedAt":5}' });
  const ended = await cluster.whenAllocation(id, ({ state }) => state === 'exited');
  assert.equal(ended.exitCode, 3);
  assert.equal(ended.timeline.endedAt, 5);
  assert.ok(ended.timeline.placedAt);
  await whenEvent(cluster, 'job.done');
  assert.equal((await cluster.call('GET', '/v1/jobs/hello')).body.job.state, 'done');
  assert.equal((await cluster.call('DELETE', '/v1/jobs/hello')).status, 204);
  await agent.when((message) => message.message === 'remove' && message.remove.allocationId === id);
  assert.equal((await cluster.call('GET', '/v1/jobs/hello')).status, 404);
  assert.equal((await cluster.run({ name: 'hello' })).job.name, 'hello', 'the name is free again');
});

test('a reason goes with the state that it explained', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one', { onAssignment: () => {} });
  const id = (await cluster.run({})).allocations[0]!.id;
  await agent.when((message) => message.message === 'assignment');
  await agent.report(id, 'pulling', { reasonCode: 'image.pulling', reasonMessage: 'Half of it.' });
  const pulling = await cluster.whenAllocation(id, ({ state }) => state === 'pulling');
  assert.equal(pulling.reason?.message, 'Half of it.');
  await agent.report(id, 'running');
  const running = await cluster.whenAllocation(id, ({ state }) => state === 'running');
  assert.equal(running.reason, undefined);
});

test('what has ended never comes back, and an older status changes nothing', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one', { onAssignment: () => {} });
  const id = (await cluster.run({})).allocations[0]!.id;
  await agent.when((message) => message.message === 'assignment');
  await agent.report(id, 'running', { sequence: 10 });
  await agent.report(id, 'exited', { sequence: 9, exitCode: 1 });
  await agent.report(id, 'exited', { sequence: 11, exitCode: 0 });
  await agent.report(id, 'running', { sequence: 12 });
  await agent.when((message) => message.message === 'statusStored' && message.statusStored.sequence === 12);
  await agent.report(id, 'failed', { sequence: 13, reasonCode: 'internal', reasonMessage: 'After its end.' });
  await agent.when((message) => message.message === 'statusStored' && message.statusStored.sequence === 13);
  const allocation = await cluster.allocation(id);
  assert.equal(allocation.state, 'exited');
  assert.equal(allocation.exitCode, 0);
});

test('work that no node can take waits, and says why', limit, async () => {
  await using cluster = await startTestCluster();
  const id = (await cluster.run({ resources: { memoryMiB: 4096 } })).allocations[0]!.id;
  await cluster.newAgent('small', { capacity: { memoryMiB: 1024 } });
  const pending = await until(async () => {
    const allocation = await cluster.allocation(id);
    return /memory/i.test(allocation.reason?.message ?? '') ? allocation : undefined;
  });
  assert.equal(pending.state, 'pending');
  assert.equal(pending.reason?.code, 'unavailable');
  await cluster.newAgent('large');
  await cluster.whenAllocation(id, ({ state, reason }) => state === 'running' && reason === undefined);
});

test(
  'stop, kill and forced removal reach the node; a stopped job that has no node yet ends at once',
  limit,
  async () => {
    await using cluster = await startTestCluster();
    const waiting = await cluster.run({ name: 'waiting' });
    const stopped = await cluster.call('POST', '/v1/jobs/waiting/stop');
    assert.equal(stopped.status, 202);
    assert.equal(stopped.body.job.state, 'stopping');
    await cluster.whenAllocation(waiting.allocations[0]!.id, ({ state }) => state === 'failed');

    const agent = await cluster.newAgent('one');
    const { allocations } = await cluster.run({ name: 'busy', count: 3 });
    for (const { id } of allocations) await cluster.whenAllocation(id, ({ state }) => state === 'running');
    assert.equal((await cluster.call('DELETE', '/v1/jobs/busy')).body.code, 'state.wrong');
    await cluster.call('POST', '/v1/jobs/busy/stop', { graceMs: 1234 });
    const told = await agent.when(
      (message) => message.message === 'assignment' && message.assignment.desired === 'stop',
    );
    assert.ok(told.message === 'assignment' && told.assignment.stopGraceMs === 1234);
    for (const { id } of allocations) await cluster.whenAllocation(id, ({ state }) => state === 'exited');

    const second = await cluster.run({ name: 'second' });
    await cluster.whenAllocation(second.allocations[0]!.id, ({ state }) => state === 'running');
    assert.equal((await cluster.call('POST', '/v1/jobs/second/signal', { signal: 15 })).status, 204);
    assert.equal((await cluster.call('DELETE', '/v1/jobs/second?force=true')).status, 204);
    assert.equal((await cluster.call('GET', '/v1/jobs/second')).status, 404);
    await agent.when((message) => message.message === 'assignment' && message.assignment.desired === 'kill');
  },
);

test(
  'a second stop with a shorter grace reaches the node, and the same stop again does not',
  limit,
  async () => {
    await using cluster = await startTestCluster();
    const agent = await cluster.newAgent('one', {
      onAssignment: (agent, { allocationId, desired }) => {
        if (desired === 'run') void agent.report(allocationId, 'running');
      },
    });
    const { allocations } = await cluster.run({ name: 'slow' });
    await cluster.whenAllocation(allocations[0]!.id, ({ state }) => state === 'running');
    for (const graceMs of [60_000, 60_000, 1_000]) {
      assert.equal((await cluster.call('POST', '/v1/jobs/slow/stop', { graceMs })).status, 202);
      await agent.when(
        (message) => message.message === 'assignment' && message.assignment.stopGraceMs === graceMs,
      );
    }
    await cluster.call('POST', '/v1/jobs/slow/kill');
    await agent.when((message) => message.message === 'assignment' && message.assignment.desired === 'kill');
    const told = agent.heard.flatMap((message) =>
      message.message === 'assignment' ? [[message.assignment.desired, message.assignment.stopGraceMs]] : [],
    );
    assert.deepEqual(told.slice(1), [
      ['stop', 60_000],
      ['stop', 1_000],
      ['kill', 0],
    ]);
  },
);

test('an ended instance of a service is replaced, with a new allocation and attempt', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one');
  const { job, allocations } = await cluster.run({ kind: 'service' });
  let id = allocations[0]!.id;
  for (const attempt of [1, 2]) {
    await cluster.whenAllocation(id, ({ state }) => state === 'running');
    await agent.report(id, 'exited', { exitCode: 1 });
    const next = await until(async () => {
      const { body } = await cluster.call('GET', `/v1/jobs/${job.id}`);
      return body.allocations.find((one: { attempt: number }) => one.attempt === attempt);
    });
    assert.notEqual(next.id, id);
    assert.equal(next.index, 0);
    id = next.id;
  }
  const { body } = await cluster.call('GET', `/v1/jobs/${job.id}`);
  assert.deepEqual(
    body.allocations.map((one: { attempt: number }) => one.attempt),
    [1, 2],
    'the last that ended is kept',
  );
  assert.equal(body.job.state, 'active');
});

test('a thousand instances are made whole, placed, and removed', { timeout: 60_000 }, async () => {
  await using cluster = await startTestCluster();
  await cluster.newAgent('one', {
    onAssignment: (agent, { allocationId }) => void agent.report(allocationId, 'exited', { exitCode: 0 }),
  });
  await cluster.newAgent('two', {
    onAssignment: (agent, { allocationId }) => void agent.report(allocationId, 'exited', { exitCode: 0 }),
  });
  const { job, allocations } = await cluster.run({ name: 'many', count: 1000 });
  assert.equal(allocations.length, 1000);
  await whenEvent(cluster, 'job.done');
  const { body } = await cluster.call('GET', `/v1/jobs/${job.id}`);
  assert.ok(body.allocations.every((one: { state: string }) => one.state === 'exited'));
  assert.equal((await cluster.call('DELETE', '/v1/jobs/many')).status, 204);
});

test('a creation that loses the race for its name leaves nothing behind', { timeout: 60_000 }, async () => {
  const dataDir = await mkdtemp(join(tmpdir(), 'cloister-race-'));
  try {
    const server = await startServer(
      { dataDir, api: { port: 0 }, link: { port: 0 }, names: ['127.0.0.1'] },
      { logger: silentLogger },
    );
    await using cluster = await testClient(server, dataDir, () => server.close());
    const spec = { image: 'busybox', name: 'wanted', count: 1000 };
    const replies = await Promise.all(
      Array.from({ length: 4 }, () => cluster.call('POST', '/v1/jobs', spec)),
    );
    assert.deepEqual(replies.map(({ status }) => status).toSorted(), [201, 409, 409, 409]);
    const winner = replies.find(({ status }) => status === 201)!.body.job as Job;
    await server.close();
    const store = await openEmbeddedStore({ folder: join(dataDir, 'store') });
    try {
      const { items } = await store.range({ prefix: 'allocations/' });
      assert.equal(items.length, 1000);
      assert.ok(items.every(({ key }) => key.startsWith(`allocations/${winner.id}/`)));
    } finally {
      await store.close();
    }
  } finally {
    await rm(dataDir, { recursive: true, force: true });
  }
});

test(
  'a job with the most instances and the largest specification still is one transaction',
  limit,
  async () => {
    await using cluster = await startTestCluster();
    const name = 'n'.repeat(63);
    const spec = { image: 'i'.repeat(255), name, count: 1000, command: [] as string[] };
    const room = 1_048_576 - 2_000 - JSON.stringify(spec).length; // what the server adds to it must fit as well
    spec.command = Array.from({ length: Math.floor(room / 50_003) }, () => 'x'.repeat(50_000));
    spec.command.push('x'.repeat(room - JSON.stringify(spec.command).length));
    const { status, body } = await cluster.call('POST', '/v1/jobs', spec);
    assert.equal(status, 201, JSON.stringify(body).slice(0, 300));
    assert.equal(body.allocations.length, 1000);
  },
);

test('a job that is to vanish when done does, once nobody is attached', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one');
  const { job, allocations } = await cluster.run({ removeWhenDone: true });
  await cluster.whenAllocation(allocations[0]!.id, ({ state }) => state === 'running');
  await agent.report(allocations[0]!.id, 'exited', { exitCode: 0 });
  await whenEvent(cluster, 'job.removed');
  assert.equal((await cluster.call('GET', `/v1/jobs/${job.id}`)).status, 404);
});

test('a long poll answers when the version has grown', limit, async () => {
  await using cluster = await startTestCluster();
  const { job, allocations } = await cluster.run({});
  const before = await cluster.allocation(allocations[0]!.id);
  const polling = cluster.call('GET', `/v1/allocations/${before.id}?waitVersion=${before.version}`);
  await cluster.call('POST', `/v1/jobs/${job.id}/kill`);
  const { body } = await polling;
  assert.ok(body.version > before.version);
  assert.equal(body.desired, 'kill');
});

test('the log of events keeps the newest, in order, and no more than it should', limit, async () => {
  await using cluster = await startTestCluster({ keepEvents: 20 });
  for (let index = 0; index < 60; index++) await cluster.run({ name: `job-${index}` });
  const revisions: number[] = [];
  const names: unknown[] = [];
  for await (const event of cluster.lines('/v1/events')) {
    revisions.push(event.revision as number);
    names.push(event.name);
  }
  assert.ok(revisions.length >= 20 && revisions.length <= 30, `${revisions.length} events`);
  assert.deepEqual(
    revisions,
    revisions.toSorted((a, b) => a - b),
  );
  assert.equal(names.at(-1), 'job-59');
  const after = [];
  for await (const event of cluster.lines(`/v1/events?after=${revisions.at(-2)}`)) after.push(event.name);
  assert.deepEqual(after, ['job-59']);
});

async function whenEvent(cluster: TestCluster, type: string): Promise<void> {
  for await (const event of cluster.lines('/v1/events?follow=true')) if (event.type === type) return;
  throw new Error(`no ${type}`);
}

/** For what has no event: asks again at once. */
async function until<Value>(check: () => Promise<Value | undefined>): Promise<Value> {
  for (;;) {
    const value = await check();
    if (value !== undefined) return value;
  }
}
