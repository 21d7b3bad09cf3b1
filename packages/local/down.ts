// make down: ends the cluster of `make up`, and whatever runs in it. Its images and records stay for the next time.
// make clean: with --forget; they do not, and the demo's go with them.
import { rm } from 'node:fs/promises';
import { findLocalCluster } from './cluster.ts';
import { DEMO_CLUSTER_FOLDER, DEMO_FOLDER, KEPT_FOLDER } from './places.ts';
import { dim, runProgram, Steps, say } from './terminal.ts';

const forget = process.argv.includes('--forget');

await runProgram('The cluster could not be ended', async () => {
  const steps = new Steps();
  try {
    for (const folder of forget ? [KEPT_FOLDER, DEMO_CLUSTER_FOLDER] : [KEPT_FOLDER]) {
      const cluster = await findLocalCluster(folder);
      if (!cluster) continue;
      const running = await cluster.running();
      if (running.length > 0) steps.begin(`ending ${running.join(', ')}`);
      // Also with none of them left: a crash may have left sandboxes.
      await (forget ? cluster.forget() : cluster.stop());
      steps.end();
    }
    if (forget) await rm(DEMO_FOLDER, { recursive: true, force: true });
  } catch (error) {
    steps.fail();
    throw error;
  }
  say(
    forget
      ? 'No cluster runs here, and nothing of one is kept.'
      : `No cluster runs here. ${dim('"make up" starts it again; "make clean" forgets what it kept.')}`,
  );
});
