// Takes a node's work down when its agent has ended for good: node teardown.ts CONFIG.json [--purge]
// Ends every sandbox (how it ended is recorded, for the next agent to tell), stops containerd, removes the cgroups.
// What is on the disk stays: identity, images, outputs; with --purge that goes, too. As often as you like.
import { readFile, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { pathToFileURL } from 'node:url';
import { stopContainerd } from '@cloister/image/containerdProcess.ts';
import { systemClock } from '@cloister/kit/clock.ts';
import { createLogger, type Logger } from '@cloister/kit/log.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { lockStateFolder } from './agent.ts';
import { openMachines } from './machines.ts';
import { cgroupPathOf, containerdFolderOf, readSettingsFile, type Settings } from './settings.ts';

/** Throws `state.wrong` while an agent runs. `purge`: the node forgets who it was, and all that it kept. */
export async function teardown(
  settings: Settings,
  logger: Logger,
  options: { readonly purge?: boolean } = {},
): Promise<void> {
  const lock = await lockStateFolder(settings.stateFolder);
  try {
    const { sandboxes, jails } = await openMachines(settings, {
      clock: systemClock,
      logger,
      onChange: () => {},
    });
    const reason = { code: 'node.down', message: 'The node was taken down.' };
    await Promise.all(sandboxes.all().map((sandbox) => sandbox.kill(reason)));
    await sandboxes.close();
    await stopContainerd(containerdFolderOf(settings));
    for (let path = cgroupPathOf(settings); path !== '/'; path = dirname(path))
      await jails.cleanupParentCgroup(path);
    if (options.purge) {
      for (const folder of [containerdFolderOf(settings), settings.stateFolder]) await removeFolder(folder);
    }
  } finally {
    lock.release();
  }
}

async function removeFolder(folder: string): Promise<void> {
  // What is mounted below is not ours to delete, whoever mounted it.
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8'))
    .split('\n')
    .map((line) => line.split(' ')[4]);
  const inside = mounts.find((path) => path?.startsWith(`${folder}/`));
  if (inside) throw new CloisterError('state.wrong', `Could not remove ${folder}: ${inside} is mounted.`);
  await rm(folder, { recursive: true, force: true });
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const logger = createLogger('teardown', { level: 'warn' });
  readSettingsFile(process.argv[2])
    .then((settings) => teardown(settings, logger, { purge: process.argv.includes('--purge') }))
    .catch((error: unknown) => {
      process.stderr.write(`cloister teardown: ${describeError(error)}\n`);
      process.exit(1);
    });
}
