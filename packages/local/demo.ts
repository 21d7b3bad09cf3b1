// make demo: a whole cluster, started, shown and ended. Everything that it prints comes from the cluster.
import { readdir, readFile } from 'node:fs/promises';
import { release } from 'node:os';
import { resolve } from 'node:path';
import { describeError } from '@cloister/model/errors.ts';
import { type Allocation, isEnded, type Timeline } from '@cloister/model/job.ts';
import { findLocalCluster, type LocalCluster, startLocalCluster } from './cluster.ts';
import { bold, dim, Steps } from './terminal.ts';

const FOLDER = resolve(import.meta.dirname, '../../build/demo');
const BAR_WIDTH = 44;

async function main(interrupted: AbortSignal): Promise<void> {
  const steps = new Steps();
  console.log(bold('A cluster on this machine'));
  await (await findLocalCluster(FOLDER))?.stop(); // of a demo that was cut off
  const cluster = await startLocalCluster({
    folder: FOLDER,
    onProgress: (what) => {
      interrupted.throwIfAborted();
      steps.begin(what);
    },
  });
  steps.end();
  try {
    await show(cluster, interrupted);
  } finally {
    console.log(bold('\nThe end'));
    steps.begin('ending the cluster');
    await cluster.stop();
    steps.end();
  }
  console.log(dim(`  nothing is left running; it all took ${steps.tookSeconds.toFixed(0)} s`));
  console.log(`\nNext:
  make up                      ${dim('the same, and it stays')}
  bin/cloister --help          ${dim('what to do with it')}
  make test                    ${dim('every promise, tested in real machines')}
  ARCHITECTURE.md, SECURITY.md ${dim('how it is built, and against whom')}`);
}

async function show(cluster: LocalCluster, interrupted: AbortSignal): Promise<void> {
  const { registryHost: host } = cluster;
  console.log(`\n${bold('An image, in a machine of its own')}  ${dim(`cloister run ${host}/hello`)}`);
  const hello = await runToEnd(cluster, { image: `${host}/hello` }, interrupted);
  console.log(dim(`  (this machine's own kernel is Linux ${release()})`));

  console.log(`\n${bold('How long its start took')}`);
  await runToEnd(cluster, { image: `${host}/hello` }, interrupted, () => {}); // now the image is on the node
  drawTimeline((await runToEnd(cluster, { image: `${host}/hello` }, interrupted, () => {})).timeline);
  console.log(dim(`  the first one pulled its image as well: ${total(hello.timeline)} ms`));

  console.log(`\n${bold('One that would run for ever')}  ${dim(`cloister run -d ${host}/forever`)}`);
  const { job, allocations } = await cluster.client.createJob({ image: `${host}/forever` });
  const stream = await cluster.client.attach(allocations[0]?.id ?? '', {}, { signal: interrupted });
  stream.stdout.on('data', (chunk: Buffer) => process.stdout.write(indent(chunk.toString())));
  stream.stderr.resume();
  await stream.started;
  const vmm = await findVmm(cluster.cgroupPath);
  console.log(
    `  outside it is process ${vmm.pid}, of user ${vmm.uid}, with capabilities ${vmm.capabilities}, seccomp ${vmm.seccomp}`,
  );
  const killedMs = performance.now();
  await cluster.client.killJob(job.id);
  while (await isThere(vmm.pid)) await new Promise((resolve) => setTimeout(resolve, 1));
  console.log(`  killed: no process of it was left ${Math.round(performance.now() - killedMs)} ms later`);
  await stream.exit;
}

async function runToEnd(
  cluster: LocalCluster,
  spec: { readonly image: string },
  interrupted: AbortSignal,
  print: (text: string) => void = (text) => process.stdout.write(text),
): Promise<Allocation> {
  const { allocations } = await cluster.client.createJob(spec);
  const id = allocations[0]?.id ?? '';
  const stream = await cluster.client.attach(id, {}, { signal: interrupted });
  stream.stdout.on('data', (chunk: Buffer) => print(indent(chunk.toString())));
  stream.stderr.on('data', (chunk: Buffer) => print(indent(chunk.toString())));
  await stream.exit;
  for (let version = 0; ; ) {
    const allocation = await cluster.client.getAllocation(id, { waitVersion: version });
    if (isEnded(allocation.state)) return allocation;
    version = allocation.version;
  }
}

const indent = (text: string): string => text.replaceAll(/^(?=.)/gm, '  | ');

const total = (timeline: Timeline): number => (timeline.firstOutputAt ?? 0) - (timeline.acceptedAt ?? 0);

/** A bar from the acceptance of the job to the first byte of its output, a line a stage. */
function drawTimeline(timeline: Timeline): void {
  const stages: [string, keyof Timeline][] = [
    ['placed on a node', 'placedAt'],
    ['told to the node', 'receivedAt'],
    ['image ready', 'imageReadyAt'],
    ['disk, jail, VMM started', 'jailReadyAt'],
    ['guest booted', 'bootedAt'],
    ['container started', 'startedAt'],
    ['first byte of output', 'firstOutputAt'],
  ];
  const beginMs = timeline.acceptedAt ?? 0;
  const wholeMs = Math.max(1, total(timeline));
  let atMs = beginMs;
  for (const [what, stage] of stages) {
    const untilMs = timeline[stage] ?? atMs;
    const [from, to] = [atMs, untilMs].map((ms) => Math.round((BAR_WIDTH * (ms - beginMs)) / wholeMs));
    const bar = ' '.repeat(from ?? 0) + '█'.repeat(Math.max((to ?? 0) - (from ?? 0), 0)) || '▏';
    console.log(`  ${what.padEnd(24)} ${`${untilMs - atMs} ms`.padStart(8)}  ${bar}`);
    atMs = untilMs;
  }
  console.log(`  ${bold('altogether'.padEnd(24))} ${bold(`${wholeMs} ms`.padStart(8))}`);
}

async function findVmm(
  cgroupPath: string,
): Promise<{ pid: number; uid: string; capabilities: string; seccomp: string }> {
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const cgroup = await readFile(`/proc/${pid}/cgroup`, 'utf8').catch(() => '');
    if (!cgroup.includes(cgroupPath)) continue;
    const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
    const field = (name: string): string => new RegExp(`^${name}:\\s+(\\S+)`, 'm').exec(status)?.[1] ?? '?';
    return {
      pid: Number(pid),
      uid: field('Uid'),
      capabilities: field('CapEff'),
      seccomp: field('Seccomp') === '2' ? 'on' : 'off',
    };
  }
  throw new Error('its VMM is not to be found');
}

async function isThere(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return status !== '' && !/^State:\s+[ZX]/m.test(status);
}

const interrupt = new AbortController();
process.once('SIGINT', () => interrupt.abort(new Error('interrupted')));
process.once('SIGTERM', () => interrupt.abort(new Error('interrupted')));
main(interrupt.signal).catch((error: unknown) => {
  console.error(`\nThe demo ended early: ${describeError(error)}`);
  process.exitCode = 1;
});
