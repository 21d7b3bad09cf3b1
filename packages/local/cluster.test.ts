// One-machine clusters: started, broken, taken over, stopped, and what is left of them.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createConnection, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { findContainerd } from '@cloister/image/containerdProcess.ts';
import { freePort } from '@cloister/image/testRegistry.ts';
import { systemClock } from '@cloister/kit/clock.ts';
import { run } from '@cloister/kit/program.ts';
import { poll } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { isEnded } from '@cloister/model/job.ts';
import { cgroupMounts, cgroupProcesses, childCgroups } from '@cloister/sandbox/jailCgroup.ts';
import { findProcess, isAlive, killProcess } from '@cloister/sandbox/jailProcess.ts';
import { findLocalCluster, type LocalCluster, startLocalCluster } from './cluster.ts';
import { findLayout, type Layout } from './layout.ts';

const CLI = join(import.meta.dirname, '../../bin/cloister');
const RESOURCES = { cpuMilli: 500, memoryMiB: 128, diskMiB: 64 };

describe('a local cluster', () => {
  let parent: string;
  let folder: string;
  let cluster: LocalCluster;
  before(async () => {
    parent = await mkdtemp(join(tmpdir(), 'cloister-local-'));
    folder = join(parent, 'cluster');
    cluster = await startLocalCluster({ folder });
  });
  after(async () => {
    await (await findLocalCluster(folder))?.forget();
    await rm(parent, { recursive: true, force: true });
  });

  test('runs its sample images for the cloister command, whose settings are nobody else’s to read', async () => {
    assert.equal((await stat(cluster.configPath)).mode & 0o777, 0o600);
    const { stdout } = await run(CLI, ['run', '--rm', '-m', '128m', `${cluster.registryHost}/hello`], {
      timeoutMs: 60_000,
      env: { PATH: process.env['PATH'] ?? '', HOME: parent, CLOISTER_CONFIG: cluster.configPath },
    });
    assert.match(stdout, /^Hello from a machine of my own\.$/m);
    assert.match(stdout, /network +lo *$/m);
  });

  test('is left as it is by a second start', async () => {
    const pids = await pidsOf(cluster);
    const again = await startLocalCluster({ folder });
    assert.deepEqual(await pidsOf(again), pids);
    assert.ok(await again.isReady());
    again.close();
  });

  test('is whole again after another start, whichever part was killed, and what ran in it runs on', async () => {
    const { job, allocations } = await cluster.client.createJob({
      image: `${cluster.registryHost}/forever`,
      resources: RESOURCES,
    });
    const id = allocations[0]?.id ?? '';
    const stream = await cluster.client.attach(id);
    await stream.started;
    stream.close();
    const machine = await machinesOf(cluster);
    assert.equal(machine.length, 1);

    for (const part of ['registry', 'server', 'agent', 'containerd'] as const) {
      const pids = await pidsOf(cluster);
      await kill(pids[part]);
      assert.ok(!(await cluster.isReady()), `${part} is not missed`);
      cluster.close();
      cluster = await startLocalCluster({ folder });
      assert.ok(await cluster.isReady(), part);
      assert.notEqual((await pidsOf(cluster))[part], pids[part]);
      assert.deepEqual(await machinesOf(cluster), machine, part);
    }
    const { allocations: now } = await cluster.client.getJob(job.id);
    assert.deepEqual(
      now.map(({ id, state }) => [id, state]),
      [[id, 'running']],
    );
  });

  test('refuses to be started twice at once', async () => {
    const [first, second] = await Promise.allSettled([
      startLocalCluster({ folder }),
      startLocalCluster({ folder }),
    ]);
    assert.equal(first.status, 'fulfilled');
    assert.ok(second.status === 'rejected' && second.reason instanceof CloisterError);
    assert.equal(second.reason.code, 'folder.locked');
    first.value.close();
  });

  test('is stopped by whoever finds its folder, as often as they like, and leaves nothing', async () => {
    const found = await findLocalCluster(folder);
    assert.ok(found);
    assert.deepEqual(await found.running(), ['registry', 'server', 'agent', 'containerd', 'sandboxes']);
    await found.stop();
    assert.deepEqual(await found.running(), []);
    await assertNothingLeft(folder);
    await found.stop();
    await assertNothingLeft(folder);
  });

  test('knows after a stop and a start who its node was, and what became of its work', async () => {
    const nodeId = JSON.parse(await readFile(join(folder, 'agent.out'), 'utf8')).nodeId;
    cluster.close();
    cluster = await startLocalCluster({ folder });
    const { nodes } = await cluster.client.listNodes();
    assert.deepEqual(
      nodes.map(({ id }) => id),
      [nodeId],
    );
    const [allocation] = (await cluster.client.listAllocations()).allocations;
    assert.ok(allocation);
    const ended = await poll(
      async () => {
        const now = await cluster.client.getAllocation(allocation.id);
        return isEnded(now.state) ? now : undefined;
      },
      { clock: systemClock, everyMs: 20, timeoutMs: 10_000, makeError: () => new Error('it never ends') },
    );
    assert.deepEqual([ended.state, ended.exitCode, ended.reason?.code], ['exited', 137, 'node.down']);
  });

  test('clears up after a machine that ended with all of it', async () => {
    const pids = await pidsOf(cluster);
    const containerd = pids.containerd;
    await Promise.all([...Object.values(pids), ...(await machinesOf(cluster))].map(kill));
    cluster.close();
    cluster = await startLocalCluster({ folder });
    assert.ok(await cluster.isReady());
    assert.notEqual((await pidsOf(cluster)).containerd, containerd);
  });

  test('ends no stranger that has the process id of a part', async () => {
    const stranger = spawn('sleep', ['600'], { stdio: 'ignore' });
    const exit = once(stranger, 'exit');
    try {
      cluster.close();
      await cluster.killAgent();
      await writeFile(join(folder, 'agent.pid'), JSON.stringify({ pid: stranger.pid, startTicks: 1 }));
      await cluster.stop();
      assert.equal(stranger.exitCode ?? stranger.signalCode, null);
      await assertNothingLeft(folder);
    } finally {
      stranger.kill('SIGKILL');
      await exit;
    }
  });

  test('leaves nothing when its start is broken off', async () => {
    const interrupt = new AbortController();
    const reason = new Error('Ctrl-C');
    const { containerdFolder } = await layoutOf(folder);
    const makeError = (): Error => new Error('there is no containerd');
    const onProgress = (what: string): void => {
      // In the middle of an agent's start: once it has made containerd.
      const check = async (): Promise<number | undefined> => await findContainerd(containerdFolder);
      if (what.startsWith('node agent'))
        poll(check, { clock: systemClock, everyMs: 1, timeoutMs: 30_000, makeError }).then(
          () => interrupt.abort(reason),
          (error: unknown) => interrupt.abort(error),
        );
    };
    await assert.rejects(startLocalCluster({ folder, onProgress, signal: interrupt.signal }), reason);
    await assertNothingLeft(folder);
  });

  test('says which log has the cause when a part does not start, and leaves nothing', async () => {
    const rejected = startLocalCluster({ folder, serverSettings: { keepEvents: -1 } });
    await assert.rejects(rejected, ({ message }: Error) => {
      assert.match(message, /The server could not be started: it ended with exit code 1/);
      assert.ok(message.includes(join(folder, 'server.log')), message);
      assert.match(message, /keepEvents/);
      return true;
    });
    await assertNothingLeft(folder);
  });

  test('is gone with its folder when it is forgotten', async () => {
    await (await findLocalCluster(folder))?.forget();
    assert.ok(!(await isThere(folder)));
    assert.equal(await findLocalCluster(folder), undefined);
  });
});

test('a port that something else has is named', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-local-'));
  const taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  try {
    const address = taken.address();
    assert.ok(address && typeof address === 'object');
    const ports = { api: await freePort(), link: address.port, registry: 0 };
    await assert.rejects(
      startLocalCluster({ folder, ports }),
      new RegExp(`server needs port ${address.port} of 127.0.0.1, and something else has it`),
    );
    taken.close();
    await once(taken, 'close');
    await assertNothingLeft(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

async function pidsOf(
  cluster: LocalCluster,
): Promise<Record<'registry' | 'server' | 'agent' | 'containerd', number>> {
  const pid = async (name: string): Promise<number> =>
    JSON.parse(await readFile(join(cluster.folder, `${name}.pid`), 'utf8')).pid;
  const { containerdFolder } = await layoutOf(cluster.folder);
  return {
    registry: await pid('registry'),
    server: await pid('server'),
    agent: await pid('agent'),
    containerd: (await findContainerd(containerdFolder)) ?? 0,
  };
}

/** Returns when it has ended. Whether it has been reaped is for its parent to say, which may be no part of ours. */
async function kill(pid: number): Promise<void> {
  const target = await findProcess(pid);
  assert.ok(target, `there is no process ${pid}`);
  await killProcess(target);
  const makeError = (): Error => new Error(`${pid} does not end`);
  const check = async (): Promise<true | undefined> => ((await isAlive(target)) ? undefined : true);
  await poll(check, { clock: systemClock, everyMs: 2, timeoutMs: 10_000, makeError });
}

/** The processes in the cluster's cgroups. */
async function machinesOf({ cgroupPath }: { readonly cgroupPath: string }): Promise<number[]> {
  const mounts = await cgroupMounts();
  const names = await childCgroups(mounts, cgroupPath);
  return (await Promise.all(names.map((name) => cgroupProcesses(mounts, join(cgroupPath, name))))).flat();
}

async function layoutOf(folder: string): Promise<Layout> {
  const layout = await findLayout(folder);
  assert.ok(layout);
  return layout;
}

async function assertNothingLeft(folder: string): Promise<void> {
  const { cgroupPath, ports } = await layoutOf(folder);
  const processes: string[] = [];
  for (const pid of (await readdir('/proc')).filter((entry) => /^\d+$/.test(entry))) {
    const about = await Promise.all(
      ['cmdline', 'cgroup'].map((file) => readFile(`/proc/${pid}/${file}`, 'utf8').catch(() => '')),
    );
    const isOurs = about[0]?.includes(folder) || about[1]?.includes(cgroupPath);
    if (isOurs && (await findProcess(Number(pid)))) processes.push(about.join(' ').slice(0, 200));
  }
  assert.deepEqual(processes, []);
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  assert.deepEqual(
    mounts.filter((line) => line.includes(folder)),
    [],
  );
  const cgroups = (await cgroupMounts()).map((mount) => join(mount, cgroupPath));
  assert.deepEqual((await Promise.all(cgroups.map(isThere))).filter(Boolean), []);
  assert.deepEqual((await Promise.all(Object.values(ports).map(isListening))).filter(Boolean), []);
}

const isThere = async (path: string): Promise<boolean> =>
  await stat(path).then(
    () => true,
    () => false,
  );

async function isListening(port: number): Promise<boolean> {
  const socket = createConnection(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
