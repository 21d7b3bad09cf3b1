// The cgroups of jails, in whatever hierarchies this host has: one on pure v2, one a controller on v1, both on hybrid.
// The OCI runtime makes them and sets their limits; here they are looked into, emptied and removed.
import { readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '@cloister/kit/clock.ts';
import { readFileIfThere } from '@cloister/kit/file.ts';
import { poll } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';

const EMPTY_TIMEOUT_MS = 5_000;
const RETRY_EVERY_MS = 2;

/** Where the hierarchies are mounted. They do not change while a host runs: ask once. */
export async function cgroupMounts(): Promise<string[]> {
  const mounts: string[] = [];
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) {
    const [place, type] = line.split(' - ');
    const mountPoint = place?.split(' ')[4];
    if (mountPoint !== undefined && /^cgroup2? /.test(type ?? '')) mounts.push(mountPoint);
  }
  return mounts;
}

/** Every process of the cgroup, in any hierarchy. */
export async function cgroupProcesses(mounts: readonly string[], path: string): Promise<number[]> {
  const lists = await Promise.all(mounts.map((mount) => readProcesses(join(mount, path))));
  return [...new Set(lists.flat())];
}

/**
 * Ends everything in the cgroup and removes it, in all hierarchies; none there is fine. Throws when something in it
 * does not end within 5 s.
 */
export async function destroyCgroup(mounts: readonly string[], path: string): Promise<void> {
  await poll(
    async () => {
      for (const pid of await cgroupProcesses(mounts, path)) kill(pid);
      const removed = await Promise.all(mounts.map((mount) => removeFolder(join(mount, path))));
      return removed.every(Boolean) ? true : undefined;
    },
    {
      clock: systemClock,
      everyMs: RETRY_EVERY_MS,
      timeoutMs: EMPTY_TIMEOUT_MS,
      makeError: () =>
        new CloisterError(
          'internal',
          `The cgroup ${path} could not be emptied within ${EMPTY_TIMEOUT_MS} ms.`,
        ),
    },
  );
}

/** Sets how much CPU time the cgroup may take in each period. Throws when no hierarchy limits CPU. */
export async function limitCpu(
  mounts: readonly string[],
  path: string,
  quota: { readonly quotaUs: number; readonly periodUs: number },
): Promise<void> {
  let isLimited = false;
  for (const mount of mounts) {
    const v1 = await writeIfThere(join(mount, path, 'cpu.cfs_quota_us'), `${quota.quotaUs}`);
    const v2 = await writeIfThere(join(mount, path, 'cpu.max'), `${quota.quotaUs} ${quota.periodUs}`);
    isLimited ||= v1 || v2;
  }
  if (!isLimited)
    throw new CloisterError('internal', `The CPU time of the cgroup ${path} could not be limited.`);
}

async function writeIfThere(path: string, text: string): Promise<boolean> {
  try {
    await writeFile(path, text, { flag: 'r+' });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** Removes a parent of jails' cgroups where nothing is left in it. For a shutdown: call from the innermost outwards. */
export async function removeEmptyCgroup(mounts: readonly string[], path: string): Promise<void> {
  await Promise.all(mounts.map((mount) => removeFolder(join(mount, path))));
}

async function readProcesses(folder: string): Promise<number[]> {
  try {
    return ((await readFileIfThere(join(folder, 'cgroup.procs'))) ?? '')
      .split('\n')
      .filter(Boolean)
      .map(Number);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENODEV') return []; // it was removed while we were reading
    throw error;
  }
}

function kill(pid: number): void {
  if (pid <= 1) return; // 0: a process that this namespace cannot see
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** True when the folder is gone. False when there is still something in it. */
async function removeFolder(folder: string): Promise<boolean> {
  try {
    await rmdir(folder);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return true;
    if (code === 'EBUSY' || code === 'ENOTEMPTY') return false;
    throw error;
  }
}

/** The cgroups right below this one, by name, in any hierarchy: for what a crashed agent left behind. */
export async function childCgroups(mounts: readonly string[], path: string): Promise<string[]> {
  const names = new Set<string>();
  for (const mount of mounts) {
    const entries = await readdir(join(mount, path), { withFileTypes: true }).catch(
      (error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return [];
        throw error;
      },
    );
    for (const entry of entries) if (entry.isDirectory()) names.add(entry.name);
  }
  return [...names];
}
