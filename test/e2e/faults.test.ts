// Whatever goes wrong ends in a clear state, with a reason that its user understands.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { FakeRegistry } from '@cloister/image/fakeRegistry.ts';
import { buildBusyboxImage, buildIndex } from '@cloister/image/testImage.ts';
import { freePort } from '@cloister/image/testRegistry.ts';
import { isErrorCode } from '@cloister/model/errors.ts';
import type { Allocation } from '@cloister/model/job.ts';
import { ExtraAgent } from './extraAgent.ts';
import { EndToEnd } from './fixture.ts';

const MAX_IMAGE_BYTES = 8_000_000;

let e2e: EndToEnd;
let liar: FakeRegistry;
let downHost: string;
before(async () => {
  liar = await FakeRegistry.start();
  downHost = `127.0.0.1:${await freePort()}`;
  e2e = await EndToEnd.start({
    agent: {
      insecureRegistries: [liar.host, downHost],
      maxImageBytes: MAX_IMAGE_BYTES,
      reserved: { cpuMilli: 0, memoryMiB: 0, diskMiB: 0 },
    },
  });
});
after(async () => {
  await e2e[Symbol.asyncDispose]();
  await liar.stop();
});

async function failed(allocation: Allocation, code: string): Promise<string> {
  assert.equal(allocation.state, 'failed', JSON.stringify(allocation));
  assert.equal(allocation.reason?.code, code, JSON.stringify(allocation.reason));
  assert.ok(isErrorCode(code), 'a code that the documentation explains');
  return allocation.reason?.message ?? '';
}

describe('an image', () => {
  test('that the registry does not have', async () => {
    const message = await failed(await e2e.run({ image: `${e2e.registry.host}/nothing` }), 'image.not-found');
    assert.match(message, /nothing/);
  });

  test('whose registry is down', async () => {
    await failed(await e2e.run({ image: `${downHost}/busybox` }), 'image.registry-unreachable');
  });

  test('whose bytes are not those of its digest', async () => {
    const image = buildBusyboxImage();
    const reference = liar.serve(image);
    const layer = image.layers[0] ?? assert.fail('no layer');
    liar.handler = (_request, response, part) => {
      if (part?.digest !== layer.digest) return false;
      const bytes = Buffer.from(layer.bytes);
      bytes.writeUInt8(bytes.readUInt8(bytes.length - 20) ^ 1, bytes.length - 20);
      response.end(bytes);
      return true;
    };
    await failed(await e2e.run({ image: reference }), 'image.digest-mismatch');
  });

  test('that is for other machines', async () => {
    const image = buildBusyboxImage();
    for (const part of [...image.layers, image.config]) await e2e.registry.pushBlob(part, 'foreign');
    await e2e.registry.pushManifest(image.manifest, 'foreign', 'one');
    const index = buildIndex([{ image, platform: { os: 'linux', architecture: 's390x' } }]);
    await e2e.registry.pushManifest(index, 'foreign', 'latest');
    await failed(await e2e.run({ image: `${e2e.registry.host}/foreign` }), 'image.platform-missing');
  });

  test('that is too large for the node', async () => {
    const content = randomBytes(MAX_IMAGE_BYTES).toString('latin1');
    const image = await e2e.push('large', { files: [{ path: 'large', content }] });
    await failed(await e2e.run({ image }), 'image.too-large');
  });

  test('that cannot be the name of one is refused at once', async () => {
    await assert.rejects(e2e.submit({ image: 'UPPER CASE' }), { status: 422 });
  });
});

describe('resources', () => {
  test("too small for a machine are refused with the field's path", async () => {
    const resources = { cpuMilli: 100, memoryMiB: 10, diskMiB: 64 };
    await assert.rejects(e2e.submit({ resources }), (error: { fields?: { path: string }[] }) => {
      assert.match(error.fields?.[0]?.path ?? '', /memoryMiB/);
      return true;
    });
  });

  test('of disk that the node has no room for', async () => {
    const { nodes } = await e2e.cluster.client.listNodes();
    const diskMiB = (nodes[0]?.capacity.diskMiB ?? 0) - 16; // all of it: nothing would be left for the node itself
    const resources = { cpuMilli: 100, memoryMiB: 128, diskMiB };
    await failed(await e2e.run({ resources, command: ['true'] }), 'node.disk-full');
  });
});

describe('a machine', () => {
  test('that is killed from outside', async () => {
    const id = await e2e.submit({ command: ['sh', '-c', 'echo up; sleep 1000'] });
    await e2e.until(id, ({ timeline }) => timeline.firstOutputAt !== undefined);
    for (const pid of await vmmPids()) process.kill(pid, 'SIGKILL');
    await failed(await e2e.ended(id), 'sandbox.vmm-died');
    assert.equal(await e2e.logs(id), 'up\n');
  });

  test('whose kernel panics', async () => {
    const command = ['sh', '-c', 'echo up; echo c > /proc/sysrq-trigger; sleep 1000'];
    assert.match(await failed(await e2e.run({ command }), 'sandbox.guest-panic'), /Kernel panic/);
  });

  test('whose workload takes all the memory tells so', async () => {
    const command = ['sh', '-c', 'x=y; while :; do x=$x$x; done'];
    const allocation = await e2e.run({ command });
    assert.equal(allocation.state, 'exited');
    assert.equal(allocation.oomKilled, true, JSON.stringify(allocation));
  });
});

describe('a machine that would be a node', () => {
  const token = async (ttlMs?: number): Promise<string> =>
    (await e2e.cluster.client.createJoinToken(ttlMs === undefined ? {} : { ttlMs })).secret;

  test('is not let in with a token that has expired', async () => {
    const secret = await token(1);
    await new Promise((resolve) => setTimeout(resolve, 20));
    const agent = await ExtraAgent.start(e2e, { name: 'late', token: secret });
    assert.equal(await agent.exited(), 1);
    assert.match(agent.stderr, /expired/);
  });

  test('is not let in with a token that somebody has used, nor under a name that is taken', async () => {
    const secret = await token();
    const first = await ExtraAgent.start(e2e, { name: 'second', token: secret });
    try {
      await first.welcomed();
      const thief = await ExtraAgent.start(e2e, { name: 'third', token: secret });
      assert.equal(await thief.exited(), 1);
      assert.match(thief.stderr, /used/);
      const impostor = await ExtraAgent.start(e2e, { name: 'second', token: await token() });
      assert.equal(await impostor.exited(), 1);
      assert.match(impostor.stderr, /name|taken|second/);
      const { nodes } = await e2e.cluster.client.listNodes();
      assert.deepEqual(nodes.map(({ name, health }) => `${name} ${health}`).sort(), [
        'local ready',
        'second ready',
      ]);
    } finally {
      await first.stop();
    }
  });

  for (const skew of ['+1h', '-1h']) {
    test(`works with a clock that is wrong by ${skew}`, async () => {
      const name = skew.startsWith('+') ? 'ahead' : 'behind';
      const agent = await ExtraAgent.start(e2e, {
        name,
        token: await token(),
        env: {
          LD_PRELOAD: '/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1',
          FAKETIME: skew,
          FAKETIME_DONT_FAKE_MONOTONIC: '1',
        },
      });
      try {
        await agent.welcomed();
        await e2e.cluster.client.cordonNode('local');
        const { nodes } = await e2e.cluster.client.listNodes();
        const allocation = await e2e.run({ command: ['echo', 'fine'] });
        assert.deepEqual([allocation.state, allocation.exitCode], ['exited', 0], JSON.stringify(allocation));
        assert.equal(nodes.find((node) => node.name === name)?.id, allocation.nodeId);
        assert.equal(await e2e.logs(allocation.id), 'fine\n');
        assert.match(await e2e.ok('events'), /clock is 1h0?m? (ahead|behind)|clock is 59m\d+s/);
      } finally {
        await e2e.cluster.client.uncordonNode('local');
        await agent.stop();
      }
    });
  }
});

async function vmmPids(): Promise<number[]> {
  const pids: number[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const cgroup = await readFile(`/proc/${pid}/cgroup`, 'utf8').catch(() => '');
    if (cgroup.includes(`${e2e.cluster.cgroupPath}/`)) pids.push(Number(pid));
  }
  return pids;
}
