// make up: a cluster on this machine that stays, in build/cluster, on fixed ports of loopback.
import { join, resolve } from 'node:path';
import { describeError } from '@cloister/model/errors.ts';
import { findLocalCluster, type LocalCluster, startLocalCluster } from './cluster.ts';
import { bold, dim, Steps } from './terminal.ts';

const FOLDER = resolve(import.meta.dirname, '../../build/cluster');
/** Far from what other registries and services like to have. */
const PORTS = { api: 17_070, link: 17_071, registry: 15_000 };

async function main(): Promise<void> {
  const running = await findLocalCluster(FOLDER);
  if (await running?.isRunning()) {
    console.log('The cluster runs already.');
    return whatNext(running as LocalCluster);
  }
  const steps = new Steps();
  await running?.stop(); // what a crash left of it
  const cluster = await startLocalCluster({
    folder: FOLDER,
    ports: PORTS,
    onProgress: (what) => steps.begin(what),
  });
  steps.end();
  console.log(`\n${bold('The cluster runs')} ${dim(`(${steps.tookSeconds.toFixed(1)} s)`)}`);
  whatNext(cluster);
  cluster.client.close();
}

function whatNext({ registryHost, apiUrl, folder }: LocalCluster): void {
  const line = (command: string, what: string): void => console.log(`  ${command.padEnd(58)} ${dim(what)}`);
  console.log('\nTry:');
  line(`bin/cloister run --rm ${registryHost}/hello`, 'a machine of its own, for one program');
  line(`bin/cloister run --rm -it ${registryHost}/busybox`, 'a shell in one');
  line(`bin/cloister run -d --name endless ${registryHost}/forever`, 'one that stays');
  line('bin/cloister ps', 'what runs');
  line('bin/cloister kill endless', 'and is ended at once');
  line('make down', 'ends everything');
  console.log(dim(`\nAPI ${apiUrl}, logs and state in ${join(folder, '/')}`));
}

main().catch((error: unknown) => {
  console.error(`\nThe cluster could not be started: ${describeError(error)}`);
  process.exitCode = 1;
});
