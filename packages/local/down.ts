// make down: ends the cluster of `make up`, and whatever runs in it. Its images and records stay for the next time.
import { resolve } from 'node:path';
import { describeError } from '@cloister/model/errors.ts';
import { findLocalCluster } from './cluster.ts';

async function main(): Promise<void> {
  const cluster = await findLocalCluster(resolve(import.meta.dirname, '../../build/cluster'));
  await cluster?.stop();
  console.log('Nothing of the cluster runs. "make up" starts it again; "make clean" forgets what it kept.');
}

main().catch((error: unknown) => {
  console.error(`The cluster could not be ended: ${describeError(error)}`);
  process.exitCode = 1;
});
