// A node's agent as a whole: a real control plane, a real registry, real containerd, real machines.
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, readlink, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { FakeRegistry } from '@cloister/image/fakeRegistry.ts';
import { buildBusyboxImage } from '@cloister/image/testImage.ts';
import { freePort, TestRegistry } from '@cloister/image/testRegistry.ts';
import { systemClock } from '@cloister/kit/clock.ts';
import { poll } from '@cloister/kit/wait.ts';
import { cgroupMounts, childCgroups } from '@cloister/sandbox/jailCgroup.ts';
import { TestCluster, type TestProcess } from './testCluster.ts';

const COUNTING = 'i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 7';
const LINES = Array.from({ length: 40 }, (_, i) => `line ${i}\n`).join('');

let cluster: TestCluster;
let settings: Record<string, unknown>;
let agent: TestProcess;
let image: string;
let stalling: FakeRegistry;
let downHost: string;
let closed: TestRegistry;

before(async () => {
  cluster = await TestCluster.start({ nodeDownAfterMs: 8_000, heartbeatIntervalMs: 2_000 });
  stalling = await FakeRegistry.start();
  downHost = `127.0.0.1:${await freePort()}`;
  closed = await TestRegistry.start({ authorization: 'password' });
  const { tenant } = await cluster.must('GET', '/v1/whoami');
  const credentialsFile = join(cluster.folder, 'credentials.json');
  const credentials = { ...closed.credentials, tenants: [tenant.id] };
  await writeFile(credentialsFile, JSON.stringify({ [closed.host]: credentials }), { mode: 0o600 });
  settings = await cluster.settings({
    credentialsFile,
    insecureRegistries: [cluster.registry.host, stalling.host, closed.host, downHost],
  });
  image = await cluster.registry.pushImage(buildBusyboxImage(), 'busybox');
  agent = await cluster.startAgent(settings);
});
after(async () => {
  await cluster[Symbol.asyncDispose]();
  await stalling.stop();
  await closed.stop();
});

const shell = (script: string, more: Record<string, unknown> = {}): Record<string, unknown> => ({
  image,
  command: ['sh', '-c', script],
  ...more,
});

/** Its layers never come. */
function serveSlowly(name: string): string {
  const slow = buildBusyboxImage({ files: [{ path: name, content: name }] });
  stalling.handler = (request, _response, part) =>
    request.method === 'GET' && slow.layers.some((layer) => layer === part);
  return stalling.serve(slow, name);
}

describe('a job', () => {
  test('runs to its end: pulled, started, its output shown to who attaches and kept in its logs', async () => {
    const id = await cluster.submit(shell('echo out; echo err >&2; printf last; exit 3'));
    const stream = cluster.open(`/v1/allocations/${id}/attach`);
    assert.deepEqual(await stream.end, { type: 'exit', exitCode: 3 });
    assert.equal(stream.heard[0], 'started');
    assert.equal(stream.output, 'out\nlast');
    assert.ok(stream.heard.includes('err:err\n'));
    const { state, exitCode, timeline, imageDigest, reason } = await cluster.ended(id);
    assert.deepEqual([state, exitCode, reason], ['exited', 3, undefined]);
    assert.match(imageDigest ?? '', /^sha256:/);
    const stages = ['receivedAt', 'imageReadyAt', 'jailReadyAt', 'bootedAt', 'startedAt', 'endedAt'] as const;
    const times = stages.map((stage) => timeline[stage] ?? 0);
    assert.deepEqual(
      times,
      [...times].sort((a, b) => a - b),
      JSON.stringify(timeline),
    );
    assert.equal((await cluster.logs(id)).length, 'out\nerr\nlast'.length);
    assert.equal((await cluster.logs(id, '?tailBytes=3')).length, 3);
    const { images } = await cluster.must('GET', '/v1/images');
    assert.ok(
      images.some((each: { digest: string }) => each.digest === imageDigest),
      'the node lists it',
    );
  });

  test('is entered by exec: told that it began before what it says, fed, and told how it ended', async () => {
    const id = await cluster.submit(shell('echo up; sleep 1000', { name: 'entered' }));
    await cluster.until(id, ({ state }) => state === 'running');
    const spec = { command: ['sh', '-c', 'echo first; cat; exit 6'], stdin: true };
    const exec = cluster.open(`/v1/allocations/${id}/exec`, spec);
    await exec.says('first\n');
    exec.send(0, 'fed');
    exec.send(3, JSON.stringify({ type: 'stdin-eof' }));
    assert.deepEqual(await exec.end, { type: 'exit', exitCode: 6 });
    assert.deepEqual(exec.heard, ['started', 'out:first\n', 'out:fed', 'exit']);
    const missing = cluster.open(`/v1/allocations/${id}/exec`, { command: ['/none'] });
    const { type, reason } = await missing.end;
    assert.deepEqual([type, (reason as { code: string }).code], ['error', 'sandbox.command-not-found']);
    assert.deepEqual(missing.heard, ['error']);
    await cluster.must('POST', '/v1/jobs/entered/kill', {});
    await cluster.ended(id);
  });
});

describe('an image that does not come', () => {
  const cases = [
    ['it is not there', () => `${cluster.registry.host}/nothing`, 'image.not-found'],
    ['its registry is down', () => `${downHost}/busybox`, 'image.registry-unreachable'],
  ] as const;
  for (const [why, reference, code] of cases) {
    test(`fails its job, and whoever attaches is told why: ${why}`, async () => {
      const id = await cluster.submit({ image: reference() });
      const { state, reason, timeline } = await cluster.ended(id);
      assert.deepEqual([state, reason?.code], ['failed', code], JSON.stringify(reason));
      assert.ok(timeline.endedAt);
      const { type, reason: told } = await cluster.open(`/v1/allocations/${id}/attach`).end;
      assert.deepEqual([type, told], ['error', reason]);
      assert.equal(await cluster.logs(id), '');
    });
  }

  test('to one tenant, whom no credentials are for, comes to another whom they are for', async () => {
    const secret = await closed.pushImage(buildBusyboxImage(), 'secret');
    const id = await cluster.submit({ image: secret, command: ['true'] });
    assert.equal((await cluster.ended(id)).state, 'exited');
    await cluster.must('POST', '/v1/tenants', { name: 'other' });
    const token = (await cluster.must('POST', '/v1/tenants/other/tokens', {})).secret;
    const others = await cluster.submit({ image: secret, command: ['true'] }, token);
    const { state, reason } = await cluster.ended(others, token);
    assert.deepEqual([state, reason?.code], ['failed', 'image.unauthorized'], JSON.stringify(reason));
  });

  for (const how of ['stop', 'kill'] as const) {
    test(`is given up at once by ${how}, as a kill of what it would have run`, async () => {
      const name = `slow-${how}`;
      const id = await cluster.submit({ image: serveSlowly(name), name });
      const pulling = await cluster.until(id, ({ reason }) => /\(\d+%\)$/.test(reason?.message ?? ''));
      assert.equal(pulling.state, 'pulling');
      assert.match(pulling.reason?.message ?? '', /^Pulling .*: [\d.]+ \w+ of [\d.]+ \w+ \(\d+%\)$/);
      const startedAt = performance.now();
      await cluster.must('POST', `/v1/jobs/${name}/${how}`, {});
      const { state, exitCode, signal } = await cluster.ended(id);
      assert.ok(performance.now() - startedAt < 2_000);
      assert.deepEqual([state, exitCode, signal], ['exited', 137, 9]);
      const end = await cluster.open(`/v1/allocations/${id}/attach`).end;
      assert.deepEqual(end, { type: 'exit', exitCode: 137, signal: 9 });
    });
  }
});

test('kill -9 of the agent loses no output of what runs, nor those who watch it', async () => {
  const id = await cluster.submit(shell(COUNTING));
  const stream = cluster.open(`/v1/allocations/${id}/attach`);
  await stream.says('line 3\n');
  await agent.end('SIGKILL');
  const probe = join(String(settings['stateFolder']), 'probe-left'); // as by one that was killed in its first start
  await mkdir(join(probe, 'run'), { recursive: true });
  agent = await cluster.startAgent(settings);
  await assert.rejects(stat(probe), { code: 'ENOENT' });
  assert.deepEqual(await stream.end, { type: 'exit', exitCode: 7 });
  assert.equal(stream.output, LINES);
  const { state, exitCode } = await cluster.ended(id);
  assert.deepEqual([state, exitCode], ['exited', 7]);
  assert.equal(await cluster.logs(id), LINES);
});

test('kill -9 of the control plane ends nothing, and it hears later what happened meanwhile', async () => {
  const id = await cluster.submit(shell('echo up; sleep 3; echo done; exit 5'));
  await cluster.until(id, ({ state }) => state === 'running');
  await cluster.killServer();
  await cluster.startServer();
  const { state, exitCode } = await cluster.ended(id);
  assert.deepEqual([state, exitCode], ['exited', 5]);
  assert.equal(await cluster.logs(id), 'up\ndone\n');
});

test('what was given up or removed while the agent was away is ended when it is back; only logs of the first stay', async () => {
  const given = await cluster.submit(shell('echo up; sleep 1000'));
  const removed = await cluster.submit(shell('echo up; sleep 1000', { name: 'removed' }));
  for (const id of [given, removed])
    await cluster.until(id, ({ timeline }) => timeline.firstOutputAt !== undefined);
  await agent.end('SIGTERM'); // in order, this time: the machines run on
  const sandboxes = join(String(settings['stateFolder']), 'sandboxes');
  for (const id of [given, removed]) assert.ok((await readdir(join(sandboxes, id))).includes('scratch'));
  await cluster.must('DELETE', '/v1/jobs/removed?force=true');
  assert.equal((await cluster.ended(given)).state, 'lost');
  await until(async () => (await cluster.call('GET', `/v1/allocations/${removed}`)).status === 404);
  agent = await cluster.startAgent(settings);
  const end = await cluster.open(`/v1/allocations/${given}/attach`).end; // by now its machine's own end
  assert.deepEqual(end, { type: 'exit', exitCode: 137, signal: 9 });
  assert.equal(await cluster.logs(given), 'up\n');
  await until(async () => !(await readdir(sandboxes)).includes(removed));
});

test('a node without its control plane ends its services after fenceAfterMs, and no batch work', async () => {
  await agent.end('SIGTERM');
  agent = await cluster.startAgent({ ...settings, fenceAfterMs: 500 });
  const batch = await cluster.submit(shell('echo up; sleep 1000', { name: 'batch' }));
  const service = await cluster.submit(shell('echo up; sleep 1000', { name: 'service', kind: 'service' }));
  for (const id of [batch, service]) await cluster.until(id, ({ state }) => state === 'running');
  const scratch = (id: string) => join(String(settings['stateFolder']), 'sandboxes', id, 'scratch');
  await cluster.killServer();
  const isThere = async (path: string) =>
    await stat(path).then(
      () => true,
      () => false,
    );
  await until(async () => !(await isThere(scratch(service))));
  assert.ok(await isThere(scratch(batch)));
  await cluster.startServer();
  const { state, reason } = await cluster.ended(service);
  assert.deepEqual([state, reason?.code], ['exited', 'node.down']);
  for (const name of ['batch', 'service']) await cluster.must('POST', `/v1/jobs/${name}/kill`, {});
  await cluster.ended(batch);
});

test('two agents do not share a folder', async () => {
  const { exitCode, stderr } = await cluster.refusedAgent(settings);
  assert.equal(exitCode, 1);
  assert.match(stderr, /Another agent runs with/);
  await assert.rejects(cluster.teardown('one'), /Another agent runs with/);
});

test('a teardown leaves nothing that runs, and a purge nothing at all', async () => {
  await cluster.submit(shell('sleep 1000', { name: 'torn' }));
  const [allocation] = (await cluster.must('GET', '/v1/jobs/torn')).allocations;
  await cluster.until(allocation.id, ({ state }) => state === 'running');
  await agent.end('SIGKILL');
  const stateFolder = String(settings['stateFolder']);
  assert.notDeepEqual(await processesOf(stateFolder), []);
  await cluster.teardown('one');
  assert.deepEqual(await processesOf(stateFolder), []);
  assert.deepEqual(await childCgroups(await cgroupMounts(), cluster.cgroupPath), []);
  assert.ok((await readdir(join(stateFolder, 'sandboxes'))).includes(allocation.id), 'its end is to be told');
  await cluster.teardown('one', '--purge');
  await assert.rejects(stat(stateFolder), { code: 'ENOENT' });
  await cluster.teardown('one', '--purge');
});

/** For what has no event. */
async function until(check: () => Promise<boolean>): Promise<void> {
  const makeError = (): Error => new Error(`it never was: ${check.toString()}`);
  await poll(async () => ((await check()) ? true : undefined), {
    clock: systemClock,
    everyMs: 20,
    timeoutMs: 20_000,
    makeError,
  });
}

/** What was started with a file of the folder, or writes into one. */
async function processesOf(folder: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    const output = await readlink(`/proc/${pid}/fd/2`).catch(() => '');
    if (command.includes(`${folder}/`) || output.startsWith(`${folder}/`)) found.push(`${pid} ${command}`);
  }
  return found;
}
