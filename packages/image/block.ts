// A view of an image's layers to one read-only block image: an EROFS file system, not compressed (see
// docs/decisions/block-image.md). Made beside its place and renamed into it, so that it is there whole or not at all.
import { mkdir, open, rename, rm, rmdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CloisterError } from '@cloister/model/errors.ts';
import type { Mount } from './containerd.ts';
import { isDiskFull } from './containerdError.ts';
import { PrivateMounts } from './privateMount.ts';

export interface BuildOptions {
  readonly mounts: readonly Mount[];
  /** "sha256:...": becomes the file system's UUID, so that one image makes one file, byte by byte. */
  readonly digest: string;
  /** Where it goes. */
  readonly path: string;
  /** An empty folder beside it, ours alone, where nothing is left. */
  readonly workFolder: string;
  readonly maxBytes: number;
  readonly signal: AbortSignal;
}

const BUILD_TIMEOUT_MS = 30 * 60_000;
/** What the shell calls a program that SIGXFSZ ended. */
const FILE_LIMIT_EXIT_CODE = 153;

/** Its size in bytes. Throws 'image.too-large', 'node.disk-full' or 'image.pull-failed'; nothing is left then. */
export async function buildBlockImage(options: BuildOptions): Promise<number> {
  const target = join(options.workFolder, 'tree');
  const temporary = join(options.workFolder, 'image');
  await mkdir(target, { recursive: true, mode: 0o700 });
  try {
    await using mounts = await PrivateMounts.open();
    const source = await mountSource(options.mounts, target, mounts);
    await makeFilesystem(source, temporary, mounts, options);
    await syncFile(temporary);
    await rename(temporary, options.path);
    await syncFile(dirname(options.path));
    return (await stat(options.path)).size;
  } finally {
    await rm(temporary, { force: true });
    await rmdir(target); // not recursively: were something mounted on it, we would not want that deleted
    await rmdir(options.workFolder);
  }
}

/** The folder that has the image's files: of one layer, the layer itself. */
async function mountSource(list: readonly Mount[], target: string, mounts: PrivateMounts): Promise<string> {
  const mount = list[0];
  if (list.length !== 1 || !mount) throw new Error(`containerd gave ${list.length} mounts for a view`);
  if (mount.type === 'bind') return mount.source;
  const folders = mount.options.find((option) => option.startsWith('lowerdir='))?.slice('lowerdir='.length);
  if (mount.type !== 'overlay' || !folders)
    throw new Error(`containerd gave a mount of the type ${mount.type} for a view`);
  // .../snapshots/12/fs:.../snapshots/11/fs; all of one snapshotter, so named from the folder that they share. The
  // split is at colons that a new path follows: the folder itself may have one in its name.
  const paths = folders.split(/:(?=\/)/);
  const base = dirname(dirname(paths[0] ?? ''));
  const names = paths.map((path) => path.slice(base.length + 1));
  if (!paths.every((path) => path.startsWith(`${base}/`)) || !names.every((name) => /^\d+\/fs$/.test(name))) {
    throw new Error('containerd keeps its snapshots in an unknown way');
  }
  await mounts.mountOverlay(base, names, target);
  return target;
}

async function makeFilesystem(
  source: string,
  path: string,
  mounts: PrivateMounts,
  options: BuildOptions,
): Promise<void> {
  const result = await mounts
    .runUnchecked(
      'setpriv',
      [
        // It reads a tree that others made up: it may read every file, and nothing else that root may. It ends with us.
        '--pdeathsig',
        'KILL',
        '--no-new-privs',
        '--inh-caps=-all',
        '--bounding-set=-all,+dac_read_search',
        'prlimit',
        `--fsize=${options.maxBytes}`,
        'mkfs.erofs',
        '--quiet',
        '--preserve-mtime',
        '-U',
        uuidOf(options.digest),
        path,
        source,
      ],
      { timeoutMs: BUILD_TIMEOUT_MS, signal: options.signal },
    )
    .catch((error: unknown) => {
      throw options.signal.aborted ? options.signal.reason : error;
    });
  if (result.exitCode === 0) return;
  const why = result.stderr.trim().slice(-500);
  const cause = new Error(why);
  if (isDiskFull(cause))
    throw new CloisterError('node.disk-full', `The node's disk has no room for the block image: ${why}.`, {
      cause,
    });
  if (result.exitCode === null || result.exitCode === FILE_LIMIT_EXIT_CODE || /file too large/i.test(why)) {
    throw new CloisterError(
      'image.too-large',
      `The block image is larger than ${options.maxBytes} bytes, the limit of this node.`,
    );
  }
  throw new CloisterError(
    'image.pull-failed',
    `The block image could not be made: ${why || `exit code ${result.exitCode}`}.`,
  );
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

function uuidOf(digest: string): string {
  const hex = digest.slice('sha256:'.length);
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join(
    '-',
  );
}
