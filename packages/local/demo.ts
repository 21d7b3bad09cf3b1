// make demo: a whole cluster, started, shown and ended. Everything that it prints is this cluster's own.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { CloisterClient } from '@cloister/client/client.ts';
import { lockFolder } from '@cloister/kit/folderLock.ts';
import { type Allocation, isEnded } from '@cloister/model/job.ts';
import { findLocalCluster, type LocalCluster, startLocalCluster } from './cluster.ts';
import { drawComparison, drawTimeline, startMs } from './drawing.ts';
import { lookInside, lookOutside, timeUntilGone } from './look.ts';
import { DEMO_CLUSTER_FOLDER, DEMO_FOLDER, KEPT_PORTS } from './places.ts';
import { bold, cyan, dim, runProgram, Steps, say } from './terminal.ts';

/** As small as it gets, so that the demo runs wherever Cloister does. */
const RESOURCES = { cpuMilli: 1000, memoryMiB: 128, diskMiB: 64 };

async function main(signal: AbortSignal): Promise<void> {
  await mkdir(DEMO_FOLDER, { recursive: true });
  const lock = lockFolder(DEMO_FOLDER, 'Another demo runs'); // two would end each other's cluster
  const steps = new Steps();
  try {
    const before = await findLocalCluster(DEMO_CLUSTER_FOLDER);
    if (((await before?.running()) ?? []).length > 0) {
      steps.begin('ending a demo that was cut off');
      await before?.stop();
      steps.end();
    }
    say(bold('A cluster on this machine'));
    const cluster = await startLocalCluster({
      folder: DEMO_CLUSTER_FOLDER,
      signal,
      onProgress: (what) => steps.begin(what),
    });
    steps.end();
    try {
      await show(cluster, signal);
    } finally {
      say(`\n${bold('The end')}`);
      steps.begin('ending the cluster');
      await cluster.stop();
      steps.end();
    }
    const left = await cluster.running();
    if (left.length > 0) throw new Error(`this still runs: ${left.join(', ')}`);
    say(`  Nothing of it is left running. Altogether ${steps.took}.`);
  } catch (error) {
    steps.fail();
    throw error;
  } finally {
    lock.release();
  }
  whatNext();
}

async function show(cluster: LocalCluster, signal: AbortSignal): Promise<void> {
  const hello = `${cluster.registryHost}/hello`;
  command('An image in a machine of its own', `run --rm ${hello}`);
  const first = await runToEnd(cluster, hello, signal, true);

  await showForever(cluster, signal);

  command('How long a start takes', `run --rm ${hello}`);
  const second = await runToEnd(cluster, hello, signal, false);
  for (const line of drawTimeline(second.timeline)) say(`  ${line}`);
  const { receivedAt = 0, imageReadyAt = receivedAt } = first.timeline;
  say(
    dim(
      `  The first one above took ${startMs(first.timeline)} ms, ${imageReadyAt - receivedAt} ms of it for its image.`,
    ),
  );
}

/** One that minds no signal: looked at from inside and outside, and killed. */
async function showForever(cluster: LocalCluster, signal: AbortSignal): Promise<void> {
  const { client, registryHost, cgroupPath } = cluster;
  const image = `${registryHost}/forever`;
  command('One that would run for ever', `run -d ${image}`);
  const { job, allocations } = await client.createJob({ image, resources: RESOURCES }, { signal });
  const id = allocations[0]?.id ?? '';
  const stream = await client.attach(id, {}, { signal });
  stream.stdout.on('data', (chunk: Buffer) => process.stdout.write(quoted(chunk)));
  stream.stderr.resume();
  await stream.started;
  const inside = await lookInside(client, id, signal);
  const { vmm, ...outside } = await lookOutside(cgroupPath);
  say();
  for (const line of drawComparison(inside, outside)) say(`  ${line}`);

  command('Killed', `kill ${job.name}`);
  const killed = client.killJob(job.id, { signal });
  const [processMs, cgroupMs] = await timeUntilGone(vmm, cgroupPath, signal);
  await killed;
  say(
    `  ${bold(`${processMs} ms`)} later its machine's process was gone, after ${cgroupMs} ms everything of it.`,
  );
  await stream.exit;
  await hasEnded(client, id, signal);
  await client.removeJob(job.id, {}, { signal });
}

/** Runs the image, shows what it writes, and removes it. Gives how it ended. */
async function runToEnd(
  { client }: LocalCluster,
  image: string,
  signal: AbortSignal,
  isShown: boolean,
): Promise<Allocation> {
  const { job, allocations } = await client.createJob({ image, resources: RESOURCES }, { signal });
  const id = allocations[0]?.id ?? '';
  const stream = await client.attach(id, {}, { signal });
  for (const output of [stream.stdout, stream.stderr])
    output.on('data', (chunk: Buffer) => isShown && process.stdout.write(quoted(chunk)));
  await stream.exit;
  const allocation = await hasEnded(client, id, signal);
  await client.removeJob(job.id, {}, { signal });
  return allocation;
}

async function hasEnded(client: CloisterClient, id: string, signal: AbortSignal): Promise<Allocation> {
  for (let version = 0; ; ) {
    const allocation = await client.getAllocation(id, { waitVersion: version }, { signal });
    if (isEnded(allocation.state)) return allocation;
    version = allocation.version;
  }
}

const quoted = (chunk: Buffer): string => chunk.toString().replaceAll(/^(?=.)/gm, `  ${cyan('│')} `);

/** A heading, and what one would type for what follows. */
function command(heading: string, line: string): void {
  say(`\n${bold(heading)}  ${dim(`cloister ${line}`)}`);
}

function whatNext(): void {
  const image = `127.0.0.1:${KEPT_PORTS.registry}/busybox`;
  const line = (text: string, what: string): void => say(`  ${text.padEnd(52)} ${dim(what)}`);
  say(`\n${bold('Next')}`);
  line('make up', 'the same cluster, and it stays');
  line(`bin/cloister run --rm -it ${image}`, 'then: a shell in a machine of its own');
  line('bin/cloister help', 'and all the rest');
  line('make test', 'every promise, kept in real machines');
  say(
    dim(`  ${['README.md', 'ARCHITECTURE.md', 'SECURITY.md'].join(', ')}: how it is built, and against whom`),
  );
  say(dim(`  ${join('build', 'demo')} keeps images and logs for the next demo; "make clean" removes them`));
}

await runProgram('The demo ended early', main);
