// How long a start takes, from the acceptance of a job to the first byte that its workload writes, beside what it is
// made of: the same guest under a QEMU started by hand, and the same image under runc. One of each in turn, so that all
// meet the same noise. Then: the memory of an idle sandbox, and the time from a kill to nothing being left.
//   node bench/start.ts [RUNS]      default 15
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '@cloister/kit/program.ts';
import { startLocalCluster } from '@cloister/local/cluster.ts';
import type { Allocation } from '@cloister/model/job.ts';
import { hostTscKhz } from '@cloister/sandbox/hostTsc.ts';
import { QemuDriver } from '@cloister/sandbox/qemu.ts';
import { prepareQemuRoot } from '@cloister/sandbox/qemuRoot.ts';
import type { GuestArtifacts } from '@cloister/sandbox/vmm.ts';
import { type BareMachine, bootBareQemu, RuncBundle } from './baselines.ts';
import { median, report } from './report.ts';

const RUNS = Number(process.argv[2] ?? 15);
const MEMORY_MIB = 256;
const DISK_MIB = 1024;
const IDLE_SANDBOXES = 4;
const COMMAND = ['/bin/busybox', 'echo', 'hello'];
const GUEST_FOLDER = join(import.meta.dirname, '../build/guest');

const guest: GuestArtifacts = {
  kernelPath: join(GUEST_FOLDER, 'vmlinux'),
  initramfsPath: join(GUEST_FOLDER, 'initramfs.cpio'),
  kernelVersion: '',
};

const folder = await mkdtemp(join(tmpdir(), 'bench-start-'));
const cluster = await startLocalCluster({ folder: join(folder, 'cluster') });
try {
  const image = `${cluster.registryHost}/busybox`;
  await ranOnce(image); // pulls it: from here on it is on the node
  const acceleration = (await cluster.client.listNodes()).nodes[0]?.facts?.acceleration ?? 'tcg';
  const qemuRoot = await prepareQemuRoot(folder, acceleration);
  const driver = new QemuDriver({ acceleration, rootPath: qemuRoot.path, tscKhz: await hostTscKhz() });
  const imagePath = await blockImage(join(folder, 'cluster'));
  const rootfs = join(folder, 'rootfs');
  await run('fsck.erofs', [`--extract=${rootfs}`, imagePath], { timeoutMs: 60_000 });
  const bundle = await RuncBundle.make(rootfs, COMMAND);
  const machine = { guest, imagePath, memoryMiB: MEMORY_MIB, diskMiB: DISK_MIB };

  const bareMs: number[] = [];
  const runcMs: number[] = [];
  const starts: Start[] = [];
  for (let i = 0; i < RUNS; i++) {
    process.stderr.write(`\rrun ${i + 1} of ${RUNS} `);
    const bare = await bootBareQemu(driver, machine);
    bareMs.push(bare.bootMs);
    await bare.stop();
    runcMs.push(await bundle.firstByteMs());
    starts.push(await ranOnce(image));
  }
  process.stderr.write('\n');
  await bundle.remove();

  // As many at once as sandboxes later: what machines share with each other is shared out among them.
  const bares = await Promise.all(
    Array.from({ length: IDLE_SANDBOXES }, () => bootBareQemu(driver, machine)),
  );
  const bareMiB = median(await Promise.all(bares.map(idleMiB)));
  await Promise.all(bares.map((bare) => bare.stop()));
  const idle = await idleSandboxes(image);
  const of = (pick: (start: Start) => number): number => median(starts.map(pick));
  const [ours, theirs] = [of((start) => start.totalMs), median(bareMs)];
  await report('start', [
    { name: 'accepted to first byte', value: ours, unit: 'ms' },
    { name: '  accepted to placed and received', value: of((start) => start.placeMs), unit: 'ms' },
    { name: '  image ready', value: of((start) => start.imageMs), unit: 'ms' },
    { name: '  disk and jail made, VMM started', value: of((start) => start.jailMs), unit: 'ms' },
    { name: '  guest booted', value: of((start) => start.bootMs), unit: 'ms' },
    { name: '  container started', value: of((start) => start.containerMs), unit: 'ms' },
    { name: '  first byte written', value: of((start) => start.outputMs), unit: 'ms' },
    { name: '  first byte at the client', value: of((start) => start.returnMs), unit: 'ms' },
    { name: 'bare QEMU to the marker of its init', value: theirs, unit: 'ms' },
    { name: 'runc run to first byte, no machine', value: median(runcMs), unit: 'ms' },
    { name: 'overhead over bare QEMU', value: ours - theirs, unit: 'ms', goal: { below: 400 } },
    {
      name: 'overhead over bare QEMU, share',
      value: (100 * (ours - theirs)) / theirs,
      unit: '%',
      goal: { below: 25 },
    },
    { name: 'memory of an idle bare VMM', value: bareMiB, unit: 'MiB' },
    { name: 'memory of an idle sandbox over that', value: idle.sandboxMiB - bareMiB, unit: 'MiB' },
    {
      name: 'kill accepted to no process left',
      value: median(idle.killMs),
      unit: 'ms',
      goal: { below: 100 },
    },
    { name: 'kill, the slowest', value: Math.max(...idle.killMs), unit: 'ms' },
  ]);
} finally {
  await cluster.stop();
  await rm(folder, { recursive: true, force: true });
}

interface Start {
  readonly totalMs: number;
  readonly placeMs: number;
  readonly imageMs: number;
  readonly jailMs: number;
  readonly bootMs: number;
  readonly containerMs: number;
  readonly outputMs: number;
  readonly returnMs: number;
}

/** One job, from its acceptance to the first byte of its output here, by one machine's one clock. */
async function ranOnce(reference: string): Promise<Start> {
  const { allocations } = await cluster.client.createJob({
    image: reference,
    command: COMMAND,
    resources: { cpuMilli: 1000, memoryMiB: MEMORY_MIB, diskMiB: DISK_MIB },
  });
  const id = allocations[0]?.id ?? '';
  const stream = await cluster.client.attach(id);
  let firstByteAtMs = 0;
  stream.stdout.on('data', () => {
    firstByteAtMs ||= Date.now();
  });
  stream.stderr.resume();
  await stream.exit;
  const { timeline, jobId } = await ended(id);
  await cluster.client.removeJob(jobId);
  const at = (stage: keyof typeof timeline): number => timeline[stage] ?? Number.NaN;
  return {
    totalMs: firstByteAtMs - at('acceptedAt'),
    placeMs: at('receivedAt') - at('acceptedAt'),
    imageMs: at('imageReadyAt') - at('receivedAt'),
    jailMs: at('jailReadyAt') - at('imageReadyAt'),
    bootMs: at('bootedAt') - at('jailReadyAt'),
    containerMs: at('startedAt') - at('bootedAt'),
    outputMs: at('firstOutputAt') - at('startedAt'),
    returnMs: firstByteAtMs - at('firstOutputAt'),
  };
}

async function ended(id: string): Promise<Allocation> {
  for (let version = 0; ; ) {
    const allocation = await cluster.client.getAllocation(id, { waitVersion: version });
    if (['exited', 'failed', 'lost'].includes(allocation.state)) return allocation;
    version = allocation.version;
  }
}

/** Memory that is its own, and its part of what it shares (PSS), once it has nothing to do. */
async function idleMiB({ pid }: Pick<BareMachine, 'pid'>): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  const rollup = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8');
  return Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1]) / 1024;
}

/** Idle sandboxes: what each costs, the agent's part for it included; then each killed. */
async function idleSandboxes(reference: string): Promise<{ sandboxMiB: number; killMs: number[] }> {
  const agentBefore = await idleMiB({ pid: cluster.agentPid });
  const before = new Set(await vmmPids());
  const jobs: string[] = [];
  for (let i = 0; i < IDLE_SANDBOXES; i++) {
    const { job, allocations } = await cluster.client.createJob({
      image: reference,
      command: ['/bin/busybox', 'sh', '-c', 'echo up; sleep 100000'],
      resources: { cpuMilli: 250, memoryMiB: MEMORY_MIB, diskMiB: DISK_MIB },
    });
    const stream = await cluster.client.attach(allocations[0]?.id ?? '');
    await stream.started;
    stream.close();
    jobs.push(job.id);
  }
  const pids = (await vmmPids()).filter((pid) => !before.has(pid));
  if (pids.length !== IDLE_SANDBOXES)
    throw new Error(`${pids.length} machines for ${IDLE_SANDBOXES} sandboxes`);
  const each = await Promise.all(pids.map((pid) => idleMiB({ pid })));
  const agentMiB = (await idleMiB({ pid: cluster.agentPid })) - agentBefore;
  const sandboxMiB = each.reduce((sum, mib) => sum + mib, agentMiB) / IDLE_SANDBOXES;
  const killMs: number[] = [];
  for (const job of jobs) {
    const left = (await vmmPids()).length - 1;
    const startedMs = performance.now();
    await cluster.client.killJob(job);
    while ((await vmmPids()).length > left) await new Promise((resolve) => setTimeout(resolve, 1));
    killMs.push(performance.now() - startedMs);
  }
  return { sandboxMiB, killMs };
}

/** VMMs of this cluster's agent: processes whose output is a file below our folder. */
async function vmmPids(): Promise<number[]> {
  const pids: number[] = [];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const maps = await readFile(`/proc/${name}/cgroup`, 'utf8').catch(() => '');
    const command = await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '');
    if (maps.includes(cluster.cgroupPath) && command.includes('qemu-system')) pids.push(Number(name));
  }
  return pids;
}

async function blockImage(clusterFolder: string): Promise<string> {
  const found = await run('find', [clusterFolder, '-name', '*.erofs', '-size', '+0'], { timeoutMs: 10_000 });
  const path = found.stdout.trim().split('\n')[0];
  if (!path) throw new Error('no block image is on the node');
  return path;
}
