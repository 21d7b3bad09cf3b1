// Who may do what, and what is said to those who may not.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { API, type Route } from '@cloister/model/api.ts';
import { newTokenId } from '@cloister/model/ids.ts';
import { startTestCluster } from './harness.ts';
import { newSecret, parseSecret, secretMatches } from './secrets.ts';

const limit = { timeout: 30_000 };

test("another tenant's objects are not there: same answer as for what never was", limit, async () => {
  await using cluster = await startTestCluster();
  await cluster.newAgent('one');
  const [alice, bob] = [await cluster.newTenant('alice'), await cluster.newTenant('bob')];
  const { job, allocations } = await cluster.run({ name: 'secret-job' }, alice);
  const allocation = allocations[0]!;
  await cluster.whenAllocation(allocation.id, ({ state }) => state === 'running', alice);
  const attempts: [string, string, unknown?][] = [
    ['GET', '/v1/jobs/JOB'],
    ['POST', '/v1/jobs/JOB/stop'],
    ['POST', '/v1/jobs/JOB/kill'],
    ['POST', '/v1/jobs/JOB/signal', { signal: 9 }],
    ['DELETE', '/v1/jobs/JOB?force=true'],
    ['GET', '/v1/allocations?job=JOB'],
    ['GET', '/v1/allocations/ALLOCATION'],
    ['GET', '/v1/allocations/ALLOCATION/logs'],
    ['GET', '/v1/allocations/ALLOCATION?waitVersion=1'],
  ];
  const [noJob, noAllocation] = [`job-${'a'.repeat(26)}`, `alc-${'a'.repeat(26)}`];
  for (const [method, path, body] of attempts) {
    for (const key of [job.id, job.name]) {
      const theirs = await cluster.call(
        method,
        path.replace('JOB', key).replace('ALLOCATION', allocation.id),
        body,
        bob,
      );
      const nobodys = await cluster.call(
        method,
        path.replace('JOB', noJob).replace('ALLOCATION', noAllocation),
        body,
        bob,
      );
      assert.equal(theirs.status, 404, path);
      const anonymous = (text: unknown) =>
        JSON.stringify(text)
          .replaceAll(key, 'X')
          .replaceAll(allocation.id, 'X')
          .replaceAll(noJob, 'X')
          .replaceAll(noAllocation, 'X');
      assert.equal(anonymous(theirs.body), anonymous(nobodys.body), path);
    }
  }
  assert.deepEqual((await cluster.call('GET', '/v1/jobs', undefined, bob)).body, { jobs: [] });
  assert.deepEqual((await cluster.call('GET', '/v1/allocations', undefined, bob)).body, { allocations: [] });
  for await (const event of cluster.lines('/v1/events', bob)) assert.fail(JSON.stringify(event));
  const mine = [];
  for await (const event of cluster.lines('/v1/events', alice)) mine.push(event.type);
  assert.ok(
    mine.includes('job.created') && mine.includes('allocation.running') && !mine.includes('node.joined'),
  );
  assert.equal(
    (await cluster.run({ name: 'secret-job' }, bob)).job.name,
    'secret-job',
    "names are each tenant's own",
  );
  assert.equal(
    (await cluster.allocation(allocation.id, alice)).state,
    'running',
    'nothing of the above did anything',
  );
});

test("operators' routes are closed to tenants, all but open ones to strangers", limit, async () => {
  await using cluster = await startTestCluster();
  const tenant = await cluster.newTenant('alice');
  for (const route of Object.values(API) as Route[]) {
    if (route.reply.kind === 'websocket') continue;
    const path = route.path.replace(/:\w+/, 'x');
    const [asStranger, asTenant] = [
      await cluster.call(route.method, path, undefined, null),
      await cluster.call(route.method, path, undefined, tenant),
    ];
    if (route.access !== 'none') assert.equal(asStranger.body.code, 'auth.missing', path);
    if (route.access === 'operator') assert.equal(asTenant.body.code, 'auth.forbidden', path);
    else assert.notEqual(asTenant.status, 403, path);
  }
});

test('a token that is wrong, unknown, expired or revoked gets in nowhere', limit, async () => {
  await using cluster = await startTestCluster();
  const valid = await cluster.newTenant('alice');
  const wrong = [
    valid.slice(0, -1) + (valid.endsWith('A') ? 'B' : 'A'),
    newSecret('clo', newTokenId()).text,
    valid.replace('clo_', 'clj_'),
    'x',
  ];
  const answers = await Promise.all(
    wrong.map((token) => cluster.call('GET', '/v1/whoami', undefined, token)),
  );
  for (const answer of answers) assert.deepEqual(answer, answers[0]);
  assert.equal(answers[0]!.body.code, 'auth.invalid');
  assert.equal((await cluster.call('GET', '/v1/whoami', undefined, valid)).body.tenant.name, 'alice');
  const { body } = await cluster.call('GET', '/v1/tenants/alice/tokens');
  assert.ok(!JSON.stringify(body).includes('secretHash'));
  assert.equal((await cluster.call('DELETE', `/v1/tokens/${body.tokens[0].id}`)).status, 204);
  assert.equal((await cluster.call('GET', '/v1/whoami', undefined, valid)).body.code, 'auth.invalid');
});

test('a secret matches its own hash only', () => {
  const { text, hash } = newSecret('clo', 'tok-x');
  const parsed = parseSecret('clo', text);
  assert.ok(parsed && secretMatches(parsed.secret, hash));
  assert.ok(!secretMatches('x', hash));
  assert.ok(!secretMatches('nobody', undefined), 'what stands in for a missing hash opens nothing');
});

test('bad input is refused with the path of each wrong field', limit, async () => {
  await using cluster = await startTestCluster();
  const paths = async (body: unknown, path = '/v1/jobs', method = 'POST') => {
    const reply = await cluster.call(method, path, body);
    assert.equal(reply.status, 422, JSON.stringify(reply.body));
    assert.equal(reply.body.type, 'urn:cloister:error:request.invalid');
    return reply.body.errors.map((error: { path: string }) => error.path);
  };
  assert.deepEqual(await paths({}), ['/image']);
  assert.deepEqual(await paths({ image: 'a', resources: { memoryMiB: 1 }, count: 0 }), [
    '/resources/memoryMiB',
    '/count',
  ]);
  assert.deepEqual(await paths({ image: 'a', privileged: true }), ['/privileged']);
  assert.deepEqual(await paths({ image: 'a', resources: { gpu: 1 } }), ['/resources/gpu']);
  assert.deepEqual(await paths({ image: 'a', count: '3' }), ['/count'], 'text is no number');
  assert.deepEqual(await paths({ image: 'a', command: ['a', 'b\u0000'] }), ['/command/1']);
  assert.equal((await paths({ image: 'a', env: { 'A=B': 'x' } })).length, 1);
  assert.equal((await paths({ image: 'a', labels: { '': 'x' } })).length, 1);
  assert.deepEqual(await paths(undefined, '/v1/jobs?state=odd', 'GET'), [
    'query/state',
    'query/state',
    'query/state',
  ]);
  assert.deepEqual(await paths(undefined, '/v1/jobs?color=red', 'GET'), ['query/color']);
  assert.deepEqual(await paths(undefined, '/v1/jobs/UPPER', 'GET'), ['params/job']);
  const reference = await cluster.call('POST', '/v1/jobs', { image: 'Not An Image' });
  assert.equal(reference.body.code, 'image.reference-invalid');
  assert.equal(reference.body.errors[0].path, '/image');
  const large = await cluster.call('POST', '/v1/jobs', {
    image: 'a',
    command: ['x'.repeat(65_000), ...Array(20).fill('y'.repeat(60_000))],
  });
  assert.equal(large.body.code, 'request.too-large');
  const taken = [
    await cluster.call('POST', '/v1/jobs', { image: 'a', name: 'n' }),
    await cluster.call('POST', '/v1/jobs', { image: 'a', name: 'n' }),
  ];
  assert.deepEqual(
    taken.map(({ status }) => status),
    [201, 409],
  );
  assert.equal(taken[1]!.body.code, 'name.taken');
  assert.equal((await cluster.call('GET', '/nothing')).body.code, 'not-found');
  for (const image of [
    'busybox',
    'a/b:c',
    '127.0.0.1:5000/x/y_z:1.0',
    `reg.example:1/a@sha256:${'a'.repeat(64)}`,
  ]) {
    assert.equal((await cluster.call('POST', '/v1/jobs', { image })).status, 201, image);
  }
});

test('two that want one name at once: one gets it', limit, async () => {
  await using cluster = await startTestCluster();
  const replies = await Promise.all(
    Array.from({ length: 8 }, () => cluster.call('POST', '/v1/jobs', { image: 'a', name: 'same' })),
  );
  assert.equal(replies.filter(({ status }) => status === 201).length, 1);
  assert.equal((await cluster.call('GET', '/v1/jobs')).body.jobs.length, 1);
  assert.equal(
    (await cluster.call('GET', '/v1/allocations')).body.allocations.length,
    1,
    'nothing half made',
  );
});

test('a tenant has as many jobs and streams as it may, and no more', limit, async () => {
  await using cluster = await startTestCluster({ maxJobsPerTenant: 2, maxStreamsPerTenant: 1 });
  await cluster.run({});
  await cluster.run({});
  assert.equal((await cluster.call('POST', '/v1/jobs', { image: 'a' })).body.code, 'limit.exceeded');
  const stream = cluster.lines('/v1/events?follow=true');
  await stream.next();
  assert.equal((await cluster.call('GET', '/v1/events')).body.code, 'limit.exceeded');
  const { allocations } = (await cluster.call('GET', '/v1/allocations')).body;
  const poll = await cluster.call('GET', `/v1/allocations/${allocations[0].id}?waitVersion=1000000`);
  assert.equal(poll.body.code, 'limit.exceeded', 'a long poll is as good as a stream');
  await stream.return(undefined);
});

test('quotas are sums: of specifications and of allocations, and the refusal says which', limit, async () => {
  await using cluster = await startTestCluster({ maxJobBytesPerTenant: 20_000, maxAllocationsPerTenant: 5 });
  const refused = async (spec: Record<string, unknown>): Promise<string> => {
    const { status, body } = await cluster.call('POST', '/v1/jobs', { image: 'a', ...spec });
    assert.equal(`${status} ${body.code}`, '429 limit.exceeded');
    return body.detail;
  };
  const large = { command: ['x'.repeat(12_000)] };
  await cluster.run({ name: 'large', ...large });
  assert.match(await refused(large), /of 20000 bytes of specifications, 12\d\d\d are used/);
  await cluster.run({ name: 'many', count: 4 });
  assert.match(await refused({}), /of 5 allocations, ended ones included, 5 are used, and it needs 1/);
  for (const name of ['large', 'many']) await cluster.call('DELETE', `/v1/jobs/${name}?force=true`);
  await cluster.run({ count: 5, ...large }, await cluster.newTenant('other'));
  await cluster.run({ count: 5, ...large });
});

test('the OpenAPI document lists every route, with its parameters and schemas', limit, async () => {
  await using cluster = await startTestCluster();
  const { body: document } = await cluster.call('GET', '/v1/openapi.json', undefined, null);
  assert.equal(document.openapi, '3.1.0');
  const operations = Object.entries<
    Record<string, { operationId: string; parameters?: { name: string; in: string }[] }>
  >(document.paths);
  const ids = operations.flatMap(([, methods]) =>
    Object.values(methods).map(({ operationId }) => operationId),
  );
  assert.deepEqual(ids.toSorted(), Object.keys(API).toSorted());
  for (const [path, methods] of operations) {
    const inPath = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
    for (const operation of Object.values(methods)) {
      const declared = (operation.parameters ?? [])
        .filter((parameter) => parameter.in === 'path')
        .map(({ name }) => name);
      assert.deepEqual(declared, inPath, path);
    }
  }
  const { schema } = document.paths['/v1/jobs'].post.requestBody.content['application/json'];
  assert.deepEqual(schema.required, ['image']);
  const references = JSON.stringify(document).match(/"\$ref":"#\/[^"]+"/g) ?? [];
  for (const reference of new Set(references)) {
    const steps = reference.slice(10, -1).split('/');
    assert.ok(
      steps.reduce((at, step) => at?.[step], document),
      reference,
    );
  }
});
