// Machines: joining, sessions, loss and return.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { joinCluster } from '@cloister/link/join.ts';
import { createAuthority } from '@cloister/link/pki.ts';
import { newAgentInstanceId } from '@cloister/model/ids.ts';
import type { Node } from '@cloister/model/node.ts';
import { startTestCluster, type TestCluster } from './harness.ts';

const limit = { timeout: 30_000 };

const tokenFor = async (cluster: TestCluster, request: Record<string, unknown> = {}): Promise<string> =>
  (await cluster.call('POST', '/v1/join-tokens', request)).body.secret;

const joinWith = (
  cluster: TestCluster,
  token: string,
  nodeName: string,
  instanceId = newAgentInstanceId() as string,
) =>
  joinCluster({
    apiUrl: `https://${cluster.server.apiAddress}`,
    caPem: cluster.caPem,
    token,
    nodeName,
    instanceId,
  });

async function eventTypes(cluster: TestCluster): Promise<unknown[]> {
  const types: unknown[] = [];
  for await (const event of cluster.lines('/v1/events')) types.push(event.type);
  return types;
}

async function whenEvent(cluster: TestCluster, type: string, after = 0): Promise<Record<string, unknown>> {
  for await (const event of cluster.lines(`/v1/events?follow=true&after=${after}`))
    if (event.type === type) return event;
  throw new Error(`no ${type}`);
}

test('a join token works once, in time, for its node and its cluster only', limit, async () => {
  await using cluster = await startTestCluster();
  const used = await tokenFor(cluster);
  await joinWith(cluster, used, 'one');
  await assert.rejects(joinWith(cluster, used, 'two'), { code: 'join.token-used' });
  const short = await tokenFor(cluster, { ttlMs: 1 });
  await new Promise((resolve) => setTimeout(resolve, 5)); // a token's life is wall-clock time
  await assert.rejects(joinWith(cluster, short, 'two'), { code: 'join.token-expired' });
  await assert.rejects(joinWith(cluster, 'clj_x_y', 'two'), { code: 'join.token-invalid' });
  const bound = await tokenFor(cluster, { nodeName: 'three', role: 'system' });
  await assert.rejects(joinWith(cluster, bound, 'two'), { code: 'join.token-invalid' });
  await joinWith(cluster, bound, 'three');
  const { nodes } = (await cluster.call('GET', '/v1/nodes')).body as { nodes: Node[] };
  assert.deepEqual(
    nodes.map(({ name, role }) => [name, role]),
    [
      ['one', 'worker'],
      ['three', 'system'],
    ],
  );

  await using other = await startTestCluster();
  await assert.rejects(joinWith(cluster, await tokenFor(other), 'two'), { code: 'join.token-invalid' });
  const apiUrl = `https://${cluster.server.apiAddress}`;
  const caPem = (await createAuthority()).certificatePem;
  const token = await tokenFor(cluster);
  await assert.rejects(
    joinCluster({ apiUrl, caPem, token, nodeName: 'two', instanceId: newAgentInstanceId() }),
    { code: 'unavailable' },
  );
  assert.equal((await eventTypes(cluster)).filter((type) => type === 'node.join-refused').length, 5);
});

test('one token used by many at once lets one in', limit, async () => {
  await using cluster = await startTestCluster();
  const token = await tokenFor(cluster);
  const joins = await Promise.allSettled(
    Array.from({ length: 6 }, (_, index) => joinWith(cluster, token, `n${index}`)),
  );
  assert.equal(joins.filter(({ status }) => status === 'fulfilled').length, 1);
  assert.equal((await cluster.call('GET', '/v1/nodes')).body.nodes.length, 1);
});

test('two agents cannot be one node; the same agent can join again', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one');
  await assert.rejects(joinWith(cluster, await tokenFor(cluster), 'one'), { code: 'join.name-taken' });
  const again = await joinWith(cluster, await tokenFor(cluster), 'one', agent.identity.instanceId);
  assert.equal(again.nodeId, agent.identity.nodeId);
  const from = agent.heard.length;
  const first = agent.session!;
  await agent.connect(newAgentInstanceId());
  const refused = agent.heard.slice(from).find((message) => message.message === 'refused');
  assert.ok(refused?.message === 'refused' && refused.refused.code === 'join.name-taken');
  assert.ok((await eventTypes(cluster)).includes('node.session-refused'));
  assert.equal(
    (await cluster.call('GET', '/v1/nodes/one')).body.health,
    'ready',
    'the first session goes on',
  );
  await agent.connect(); // the same agent dials again before its old connection is noticed to be dead
  assert.equal((await first.closed)?.code, 'unavailable');
  assert.equal((await cluster.call('GET', '/v1/nodes/one')).body.health, 'ready');
});

test('a node whose clock is an hour wrong works, and operators are told', limit, async () => {
  await using cluster = await startTestCluster();
  await cluster.newAgent('late', { clockSkewMs: -3_600_000 });
  const event = await whenEvent(cluster, 'node.ready');
  assert.match(String(event.message), /clock is 1h0m behind|clock is 59m59s behind/);
  const { allocations } = await cluster.run({});
  await cluster.whenAllocation(allocations[0]!.id, ({ state }) => state === 'running');
});

test(
  'the work of a node that stays away is lost, services go elsewhere, and on its return it is told to end it',
  limit,
  async () => {
    await using cluster = await startTestCluster({ nodeDownAfterMs: 300 });
    const agent = await cluster.newAgent('one');
    const batch = (await cluster.run({ name: 'batch' })).allocations[0]!.id;
    const service = (await cluster.run({ name: 'service', kind: 'service' })).allocations[0]!.id;
    for (const id of [batch, service]) await cluster.whenAllocation(id, ({ state }) => state === 'running');
    await cluster.newAgent('two');
    agent.disconnect();
    await whenEvent(cluster, 'node.suspect');
    for (const id of [batch, service]) {
      const lost = await cluster.whenAllocation(id, ({ state }) => state === 'lost');
      assert.equal(lost.reason?.code, 'node.down');
    }
    const replaced = async () => (await cluster.call('GET', '/v1/jobs/service')).body.allocations.at(-1);
    let replacement = await replaced();
    while (replacement.state !== 'running') replacement = await replaced();
    assert.equal(replacement.attempt, 1);
    assert.notEqual(replacement.nodeId, agent.identity.nodeId);
    assert.equal(
      (await cluster.call('GET', '/v1/jobs/batch')).body.allocations.length,
      1,
      'a batch instance is not run twice',
    );

    const from = agent.heard.length;
    await agent.connect();
    const told = agent.heard
      .slice(from)
      .flatMap((message) => (message.message === 'assignment' ? [message.assignment] : []));
    assert.deepEqual(
      told.map(({ allocationId, keep, desired }) => [allocationId, keep, desired]).toSorted(),
      [
        [batch, true, 'kill'],
        [service, true, 'kill'],
      ].toSorted(),
    );
    await agent.report(batch, 'running');
    await agent.when((message) => message.message === 'statusStored');
    assert.equal((await cluster.allocation(batch)).state, 'lost');
  },
);

test('a node that comes back in time keeps its work', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one');
  const { id } = (await cluster.run({})).allocations[0]!;
  await cluster.whenAllocation(id, ({ state }) => state === 'running');
  agent.disconnect();
  await whenEvent(cluster, 'node.suspect');
  const from = agent.heard.length;
  await agent.connect();
  const again = await agent.when((message) => message.message === 'assignment', from);
  assert.ok(again.message === 'assignment' && !again.assignment.keep && again.assignment.desired === 'run');
  assert.equal((await cluster.allocation(id)).state, 'running');
});

test('an agent that stops speaking loses its session', limit, async () => {
  await using cluster = await startTestCluster({ heartbeatIntervalMs: 100 });
  const agent = await cluster.newAgent('mute');
  assert.match((await agent.session!.closed)?.message ?? '', /said nothing/);
});

test('nothing is placed on a cordoned node; a removed node may not come back', limit, async () => {
  await using cluster = await startTestCluster({ nodeDownAfterMs: 100 });
  const agent = await cluster.newAgent('one');
  assert.equal((await cluster.call('POST', '/v1/nodes/one/cordon')).body.cordoned, true);
  const { id } = (await cluster.run({})).allocations[0]!;
  assert.equal((await cluster.call('DELETE', '/v1/nodes/one')).body.code, 'state.wrong');
  assert.equal((await cluster.allocation(id)).state, 'pending');
  agent.disconnect();
  await whenEvent(cluster, 'node.down');
  assert.equal((await cluster.call('DELETE', '/v1/nodes/one')).status, 204);
  const from = agent.heard.length;
  await agent.connect();
  const refused = agent.heard.slice(from).find((message) => message.message === 'refused');
  assert.ok(refused?.message === 'refused' && refused.refused.code === 'auth.invalid');
});

test('a status that is not as it should be ends the session of its sender, and no other', limit, async () => {
  await using cluster = await startTestCluster();
  const good = await cluster.newAgent('good');
  const { id } = (await cluster.run({})).allocations[0]!;
  await cluster.whenAllocation(id, ({ state }) => state === 'running');
  const bad = await cluster.newAgent('bad');
  const wrong = [
    [`alc-${'a'.repeat(1_000_000)}`, {}],
    [id, { timelineJson: JSON.stringify({ junk: 'x'.repeat(1_000_000) }) }],
  ] as const;
  for (const [allocationId, more] of wrong) {
    await bad.report(allocationId, 'running', more);
    assert.match((await bad.session!.closed)?.message ?? '', /no id of an allocation|timeline/);
    await bad.connect();
  }
  await good.report(id, 'exited', { exitCode: 0 });
  await cluster.whenAllocation(id, ({ state }) => state === 'exited');
});

test('however long the reasons of many statuses at once are, all are stored', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one', { onAssignment: () => {} });
  const { job, allocations } = await cluster.run({ count: 300, resources: { cpuMilli: 50 } });
  await agent.when(() => agent.heard.filter(({ message }) => message === 'assignment').length === 300);
  const reasonMessage = '\u0001'.repeat(4096); // six bytes each, as JSON
  const reports = allocations.map(({ id }) =>
    agent.report(id, 'failed', { reasonCode: 'internal', reasonMessage }),
  );
  await Promise.all(reports);
  const last = allocations.at(-1)!.id;
  const stored = agent.when(
    (message) => message.message === 'statusStored' && message.statusStored.allocationId === last,
  );
  assert.equal(
    await Promise.race([agent.session!.closed.then(String), stored.then(() => 'stored')]),
    'stored',
  );
  const { body } = await cluster.call('GET', `/v1/jobs/${job.id}`);
  for (const { state, reason } of body.allocations) assert.equal(reason.message, reasonMessage, state);
});
