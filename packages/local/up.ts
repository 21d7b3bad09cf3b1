// make up: a cluster on this machine that stays, in build/cluster, on fixed ports of loopback.
import { findLocalCluster, type LocalCluster, startLocalCluster } from './cluster.ts';
import { KEPT_FOLDER, KEPT_PORTS } from './places.ts';
import { bold, dim, runProgram, Steps, say } from './terminal.ts';

await runProgram('The cluster could not be started', async (signal) => {
  const known = await findLocalCluster(KEPT_FOLDER);
  if (known && (await known.isReady())) {
    known.close();
    say(`${bold('The cluster runs already.')} ${dim('"make down" ends it.')}`);
    whatNext(known);
    return;
  }
  const left = (await known?.running()) ?? [];
  if (left.length > 0) say(dim(`Of an earlier start still runs: ${left.join(', ')}. It is taken over.`));
  const steps = new Steps();
  try {
    const cluster = await startLocalCluster({
      folder: KEPT_FOLDER,
      ports: KEPT_PORTS,
      signal,
      onProgress: (what) => steps.begin(what),
    });
    cluster.close();
    steps.end();
    say(`\n${bold('The cluster runs.')} ${dim(`It took ${steps.took}.`)}`);
    whatNext(cluster);
  } catch (error) {
    steps.fail();
    throw error;
  }
});

function whatNext({ registryHost, apiUrl, folder }: LocalCluster): void {
  const line = (command: string, what: string): void => say(`  ${command.padEnd(60)} ${dim(what)}`);
  say('\nTry:');
  line(`bin/cloister run --rm ${registryHost}/hello`, 'a program in a machine of its own');
  line(`bin/cloister run --rm -it ${registryHost}/busybox`, 'a shell in one');
  line(`bin/cloister run -d --name endless ${registryHost}/forever`, 'one that never ends');
  line('bin/cloister ps', 'what runs');
  line('bin/cloister exec -it endless sh', 'look around in it');
  line('bin/cloister kill endless', 'gone at once');
  line('make down', 'ends everything');
  say(dim(`\nThe API is at ${apiUrl}; state and logs are in ${folder}.`));
  say(dim(`Push images of your own to ${registryHost}, which speaks plain HTTP and asks nobody's name.`));
}
