// Every sandbox that ends leaves nothing behind: everything that could be left is counted before and after many runs.
import assert from 'node:assert/strict';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { EndToEnd } from './fixture.ts';

const RUNS = 50;
const AT_ONCE = 4;

let e2e: EndToEnd;
before(async () => {
  e2e = await EndToEnd.start();
});
after(async () => await e2e[Symbol.asyncDispose]());

test(`${RUNS} runs, some of them killed at any moment, leave no process, mount, cgroup, namespace, device or file`, async () => {
  await e2e.cluster.client.removeJob((await e2e.run({ command: ['true'] })).jobId); // the image comes, and stays
  const before = await inventory();
  let next = 0;
  const states = new Map<string, number>();
  const worker = async (): Promise<void> => {
    for (let i = next++; i < RUNS; i = next++) {
      const id = await e2e.submit({
        command: ['sh', '-c', 'echo ran; cat /dev/zero | head -c 1000000 > /tmp/x; exit 1'],
      });
      const { jobId } = await e2e.cluster.client.getAllocation(id);
      if (i % 3 !== 0) {
        // From before the agent knows of it until after the workload has started.
        await new Promise((resolve) => setTimeout(resolve, (i * 97) % 2_600));
        await e2e.cluster.client.killJob(jobId);
      }
      const { state, exitCode } = await e2e.ended(id);
      const outcome = `${state} ${exitCode}`;
      states.set(outcome, (states.get(outcome) ?? 0) + 1);
      await e2e.cluster.client.removeJob(jobId);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  assert.deepEqual([...states.keys()].sort(), ['exited 1', 'exited 137'], 'each ended as it should');
  assert.equal(
    [...states.values()].reduce((sum, count) => sum + count),
    RUNS,
  );
  await settled(before);
});

/** The last removal is asked for, not waited for: compares until it is the same, for a while. */
async function settled(before: Record<string, string[]>): Promise<void> {
  const deadlineMs = performance.now() + 10_000;
  for (;;) {
    const now = await inventory();
    const added = Object.entries(now).map(([what, items]) => [
      what,
      items.filter((item) => !before[what]?.includes(item)),
    ]);
    if (added.every(([, items]) => items?.length === 0)) return;
    if (performance.now() > deadlineMs)
      assert.fail(`left behind: ${JSON.stringify(Object.fromEntries(added))}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function inventory(): Promise<Record<string, string[]>> {
  const folder = join(e2e.folder, 'cluster');
  const processes: string[] = [];
  const namespaces = new Set<string>();
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const output = await readlink(`/proc/${pid}/fd/2`).catch(() => '');
    const cgroups = await readFile(`/proc/${pid}/cgroup`, 'utf8').catch(() => '');
    if (!output.startsWith(folder) && !cgroups.includes(e2e.cluster.cgroupPath)) continue;
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (command === '') continue; // a zombie of another parent's
    processes.push(`${pid} ${command.slice(0, 100)}`);
    for (const kind of ['mnt', 'net', 'pid', 'ipc', 'uts', 'cgroup'])
      namespaces.add(await readlink(`/proc/${pid}/ns/${kind}`).catch(() => 'gone'));
  }
  const cgroups: string[] = [];
  for (const mount of await cgroupMounts()) {
    const path = join(mount, e2e.cluster.cgroupPath);
    for (const name of await readdir(path, { withFileTypes: true }).catch(() => []))
      if (name.isDirectory()) cgroups.push(join(path, name.name));
  }
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8'))
    .split('\n')
    .filter((line) => line.includes(folder));
  const agentFolder = join(folder, 'agent');
  const files = (await readdir(agentFolder, { recursive: true })).filter((path) =>
    /^(sandboxes|jails|probe)/.test(path),
  );
  const devices = await readdir('/sys/class/net');
  const descriptors = [`${(await readdir(`/proc/${e2e.cluster.agentPid}/fd`)).length > 100}`];
  return { processes, namespaces: [...namespaces], cgroups, mounts, files, devices, descriptors };
}

async function cgroupMounts(): Promise<string[]> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  return lines.filter((line) => / - cgroup2? /.test(line)).map((line) => line.split(' ')[4] ?? '');
}
