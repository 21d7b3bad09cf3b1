// A control plane as a program of its own: killed without warning, and closed in order.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { type TestCluster, testClient } from './harness.ts';

const limit = { timeout: 60_000 };
const MAIN = fileURLToPath(new URL('./main.ts', import.meta.url));

async function start(
  dataDir: string,
  ports = { api: 0, link: 0 },
): Promise<{ child: ChildProcess; cluster: TestCluster }> {
  const config = join(dataDir, 'config.json');
  await writeFile(
    config,
    JSON.stringify({ dataDir, api: { port: ports.api }, link: { port: ports.link }, names: ['127.0.0.1'] }),
  );
  const child = spawn(process.execPath, [MAIN, config], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, CLOISTER_LOG: 'warn' },
  });
  const [line] = await once(child.stdout!, 'data');
  const addresses = JSON.parse(line.toString());
  const cluster = await testClient({ ...addresses, close: async () => {} }, dataDir, async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  });
  return { child, cluster };
}

const portOf = (address: string): number => Number(address.slice(address.lastIndexOf(':') + 1));

test('whatever was acknowledged is there after kill -9, and agents go on', limit, async () => {
  const dataDir = await mkdtemp(join(tmpdir(), 'cloister-restart-'));
  try {
    const acknowledged: string[] = [];
    const first = await start(dataDir);
    const { server } = first.cluster;
    const agent = await first.cluster.newAgent('one', {
      capacity: { sandboxes: 10_000, memoryMiB: 10_000_000, cpuMilli: 10_000_000, diskMiB: 100_000_000 },
    });
    const alice = await first.cluster.newTenant('alice');
    const create = async (index: number): Promise<void> => {
      for (let round = 0; ; round++) {
        const name = `job-${index}-${round}`;
        const reply = await first.cluster
          .call('POST', '/v1/jobs', { image: 'a', name, count: 2 }, alice)
          .catch(() => undefined);
        if (reply?.status !== 201) return;
        acknowledged.push(name);
        if (acknowledged.length === 60) first.child.kill('SIGKILL');
      }
    };
    await Promise.all(Array.from({ length: 4 }, (_, index) => create(index)));
    await first.cluster[Symbol.asyncDispose]();

    const second = await start(dataDir, { api: portOf(server.apiAddress), link: portOf(server.linkAddress) });
    await using cluster = second.cluster;
    assert.equal(cluster.operator, first.cluster.operator, 'no second operator token');
    assert.equal(cluster.caPem, first.cluster.caPem);
    for (const name of acknowledged) {
      const { status, body } = await cluster.call('GET', `/v1/jobs/${name}`, undefined, alice);
      assert.equal(status, 200, name);
      assert.equal(body.allocations.length, 2, name);
    }
    assert.equal(
      (await cluster.call('GET', '/v1/nodes/one')).body.health,
      'suspect',
      'a restart does not lose work at once',
    );
    await agent.connect();
    const { id } = (await cluster.call('GET', `/v1/jobs/${acknowledged[0]}`, undefined, alice)).body
      .allocations[0];
    await cluster.whenAllocation(id, ({ state }) => state === 'running', alice);
    agent.disconnect();
  } finally {
    await rm(dataDir, { recursive: true, force: true });
  }
});

test(
  'SIGTERM closes in order, streams and sessions included; secrets are for their owner only',
  limit,
  async () => {
    const dataDir = await mkdtemp(join(tmpdir(), 'cloister-term-'));
    try {
      const { child, cluster } = await start(dataDir);
      const agent = await cluster.newAgent('one');
      const following = cluster.lines('/v1/events?follow=true');
      await following.next();
      for (const secret of ['ca-key.pem', 'operator.token']) {
        assert.equal((await stat(join(dataDir, secret))).mode & 0o777, 0o600, secret);
      }
      const exit = once(child, 'exit');
      child.kill('SIGTERM');
      await following.return(undefined);
      assert.deepEqual(await exit, [0, null]);
      assert.ok(await agent.session!.closed);
      await cluster[Symbol.asyncDispose]();
    } finally {
      await rm(dataDir, { recursive: true, force: true });
    }
  },
);

test('who has only expired tokens of an operator finds a new one after a restart', limit, async () => {
  const dataDir = await mkdtemp(join(tmpdir(), 'cloister-operator-'));
  try {
    const { cluster } = await start(dataDir);
    const tokens = '/v1/tenants/default/tokens';
    const { id } = (await cluster.call('GET', tokens)).body.tokens[0];
    const { secret } = (await cluster.call('POST', tokens, { scope: 'operator', ttlMs: 1000 })).body;
    assert.equal((await cluster.call('DELETE', `/v1/tokens/${id}`)).status, 204);
    while ((await cluster.call('GET', '/v1/whoami', undefined, secret)).status === 200); // for a second, by wall clock
    await cluster[Symbol.asyncDispose]();
    await using again = (await start(dataDir)).cluster;
    assert.equal((await again.call('GET', '/v1/whoami')).body.scope, 'operator');
  } finally {
    await rm(dataDir, { recursive: true, force: true });
  }
});
