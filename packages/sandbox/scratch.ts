// The scratch disk of a sandbox: a sparse file with an ext4 in it, exactly as large as the sandbox may fill. It lives as
// long as the machine and no longer, so it has no journal, and nothing of it is synced.
import { open, rm, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ProgramError, run } from '@cloister/kit/program.ts';
import { CloisterError } from '@cloister/model/errors.ts';

/** Below this an ext4 has no room left for files. */
export const MIN_SCRATCH_MIB = 16;
/** Left free on the host's file system, whatever sandboxes ask for: the agent's own files must not meet a full disk. */
const DEFAULT_RESERVE_MIB = 1024;
const MKFS_TIMEOUT_MS = 30_000;
const MIB = 1_048_576;

export interface ScratchOptions {
  readonly path: string;
  readonly sizeMiB: number;
  /** Owner of the file, user and group: the jail's. */
  readonly uid: number;
  /** Must stay free beside what this disk may grow to. Default 1024. */
  readonly reserveMiB?: number;
  readonly signal?: AbortSignal;
}

/**
 * Makes the disk. The file is sparse, so the check for free space is against what all the others have written, not
 * against what they may still write: whoever places sandboxes counts that. Throws `node.disk-full`; leaves nothing
 * behind then.
 */
export async function createScratch(options: ScratchOptions): Promise<void> {
  await (await beginScratch(options)).formatted;
}

/**
 * As createScratch, in two steps: when this resolves the file is there, of its full size and its owner's; when
 * `formatted` does, so is its file system (about 10 ms later). A VMM may be started in between: its guest does not look
 * at the disk for a long while. When either fails, nothing is left behind.
 */
export async function beginScratch(options: ScratchOptions): Promise<{ readonly formatted: Promise<void> }> {
  const { path, sizeMiB } = options;
  if (!Number.isSafeInteger(sizeMiB) || sizeMiB < MIN_SCRATCH_MIB) {
    throw new CloisterError(
      'request.invalid',
      `A scratch disk has ${MIN_SCRATCH_MIB} MiB at least, not ${sizeMiB}.`,
    );
  }
  await checkFreeSpace(dirname(path), sizeMiB, options.reserveMiB ?? DEFAULT_RESERVE_MIB);
  try {
    // Exclusively: a path that is already there belongs to somebody, or is a trap.
    const file = await open(path, 'wx', 0o600);
    try {
      await file.truncate(sizeMiB * MIB);
      await file.chown(options.uid, options.uid);
    } finally {
      await file.close();
    }
  } catch (error) {
    throw await undone(error, options);
  }
  const formatted = run('mkfs.ext4', mkfsArgs(path), {
    timeoutMs: MKFS_TIMEOUT_MS,
    ...(options.signal ? { signal: options.signal } : {}),
  }).then(
    () => {},
    async (error: unknown) => {
      throw await undone(error, options);
    },
  );
  formatted.catch(() => {}); // whoever gives up in between need not wait for it
  return { formatted };
}

async function undone(error: unknown, { path, sizeMiB }: ScratchOptions): Promise<unknown> {
  if ((error as NodeJS.ErrnoException).code !== 'EEXIST') await rm(path, { force: true });
  if (!isDiskFull(error)) return error;
  const message = `A scratch disk of ${sizeMiB} MiB could not be made: the node's disk is full.`;
  return new CloisterError('node.disk-full', message, { cause: error });
}

async function checkFreeSpace(folder: string, sizeMiB: number, reserveMiB: number): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  const freeMiB = Math.floor((bavail * bsize) / MIB);
  if (freeMiB < sizeMiB + reserveMiB) {
    throw new CloisterError(
      'node.disk-full',
      `A scratch disk of ${sizeMiB} MiB does not fit: the node has ${freeMiB} MiB free and keeps ${reserveMiB} for itself.`,
    );
  }
}

function mkfsArgs(path: string): string[] {
  return [
    '-q',
    '-F',
    // No journal: after a crash of the machine nobody reads this disk again. No room for growing: it never does.
    '-O',
    '^has_journal,^resize_inode,sparse_super2',
    '-m',
    '0',
    // One inode for 16 KiB, whatever the size: images full of small files (node_modules) fit at every size.
    '-i',
    '16384',
    '-b',
    '4096',
    // A fresh sparse file is all zeros already: no table needs to be written, no block discarded, no backup kept.
    '-E',
    'lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard,num_backup_sb=0,root_owner=0:0',
    path,
  ];
}

function isDiskFull(error: unknown): boolean {
  if ((error as NodeJS.ErrnoException).code === 'ENOSPC') return true;
  return error instanceof ProgramError && error.result.stderr.includes('No space left on device');
}
