// A view of an image's layers to one read-only block image: an EROFS file system, not compressed (see
// docs/decisions/block-image.md). Made beside its place and renamed into it, so that it is there whole or not at all.
import { randomInt } from 'node:crypto';
import { mkdir, open, rename, rm, rmdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { RunResult } from '@cloister/kit/program.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import type { Mount } from './containerd.ts';
import { diskFull, isDiskFull } from './containerdError.ts';
import { unsupported } from './manifest.ts';
import { PrivateMounts } from './privateMount.ts';

export interface BuildOptions {
  readonly mounts: readonly Mount[];
  /** "sha256:...". Its beginning becomes the file system's UUID, so that a file says what it was made from. */
  readonly digest: string;
  /** Where it goes. */
  readonly path: string;
  /** An empty folder beside it, ours alone, where nothing is left. */
  readonly workFolder: string;
  readonly maxBytes: number;
  readonly signal: AbortSignal;
}

const BUILD_TIMEOUT_MS = 30 * 60_000;
/** A random one for each build, so that builds that run at once cannot touch each other. Nobody else may have these. */
const FIRST_BUILD_UID = 900_000_000;
const BUILD_UIDS = 100_000_000;
const BLOCK_MODE = 0o644;
/** None shared between files: the pass that looks for those ignores what is excluded, and costs a walk of the tree. */
const INLINE_XATTRS = '-x2147483647';
/** As arguments of a program, all together. */
const MAX_UNREAL_BYTES = 65_536;
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
    const uid = FIRST_BUILD_UID + randomInt(BUILD_UIDS);
    await giveFile(temporary, uid);
    await makeFilesystem(source, temporary, uid, mounts, options);
    await takeFile(temporary);
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
  uid: number,
  mounts: PrivateMounts,
  options: BuildOptions,
): Promise<void> {
  let result = await runMkfs(source, path, uid, [], mounts, options);
  if (result.exitCode !== 0 && /\[Error 2\]/.test(result.stderr)) {
    // A layer that whites out what no layer below has: the overlay lists the name, and has no such file.
    const excluded = (await findUnreal(source, mounts, options)).map((name) => `--exclude-path=${name}`);
    if (excluded.length > 0) result = await runMkfs(source, path, uid, excluded, mounts, options);
  }
  if (result.exitCode === 0) return;
  const why = result.stderr.trim().slice(-500);
  const cause = new Error(why);
  if (isDiskFull(cause)) throw diskFull('the block image', cause);
  if (result.exitCode === null || result.exitCode === FILE_LIMIT_EXIT_CODE || /file too large/i.test(why)) {
    const message = `The block image is larger than ${options.maxBytes} bytes, the limit of this node.`;
    throw new CloisterError('image.too-large', message);
  }
  const message = `The block image could not be made: ${why || `exit code ${result.exitCode}`}.`;
  throw new CloisterError('image.pull-failed', message);
}

async function runMkfs(
  source: string,
  path: string,
  uid: number,
  more: readonly string[],
  mounts: PrivateMounts,
  { signal, maxBytes, digest }: BuildOptions,
): Promise<RunResult> {
  // It reads a tree that others made up: it may read every file, and write its own and what everybody may. It ends
  // with us.
  const confined = [
    ...['--pdeathsig', 'KILL', '--no-new-privs', '--clear-groups', `--reuid=${uid}`, `--regid=${uid}`],
    ...['inh-caps', 'ambient-caps', 'bounding-set'].map((set) => `--${set}=-all,+dac_read_search`),
  ];
  const mkfs = [
    'mkfs.erofs',
    '--quiet',
    '--preserve-mtime',
    INLINE_XATTRS,
    '-U',
    uuidOf(digest),
    ...more,
    path,
    source,
  ];
  const args = [...confined, 'prlimit', `--fsize=${maxBytes}`, ...mkfs];
  try {
    return await mounts.runUnchecked('setpriv', args, { timeoutMs: BUILD_TIMEOUT_MS, signal });
  } catch (error) {
    throw signal.aborted ? signal.reason : error;
  }
}

/** Names that are listed and not there: whiteouts in a folder that is in one layer only. */
async function findUnreal(
  source: string,
  mounts: PrivateMounts,
  { signal }: BuildOptions,
): Promise<string[]> {
  const args = [source, '-mindepth', '1', '!', '-type', 'l', '!', '-readable', '-printf', '%P\\0'];
  const { stdout } = await mounts.runUnchecked('find', args, {
    timeoutMs: BUILD_TIMEOUT_MS,
    maxOutputBytes: MAX_UNREAL_BYTES,
    signal,
  });
  const names = stdout.split('\0').filter((name) => name !== '');
  if (stdout.length >= MAX_UNREAL_BYTES)
    throw unsupported('it whites out too many files that it does not have');
  return names;
}

/** Makes it, empty, for a program of that user to write. */
async function giveFile(path: string, uid: number): Promise<void> {
  const file = await open(path, 'wx', 0o600);
  try {
    await file.chown(uid, uid);
  } finally {
    await file.close();
  }
}

/** Whole, and ours again. */
async function takeFile(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.chown(0, 0);
    await file.chmod(BLOCK_MODE);
    await file.sync();
  } finally {
    await file.close();
  }
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
