// The root of every QEMU jail: the binary, the libraries that it loads, its modules and firmware, two device nodes, and
// empty files to bind a machine's own over. Made once per version of those, shared read-only by all jails of the node;
// nothing of it is made or looked at when a sandbox starts.
import { createHash } from 'node:crypto';
import {
  access,
  chmod,
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  writeFile,
} from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { run } from '@cloister/kit/program.ts';
import { CloisterError } from '@cloister/model/errors.ts';

export const QEMU_BINARY = '/usr/bin/qemu-system-x86_64';
/** Where a machine's files appear in the jail. */
export const INSIDE = {
  kernel: '/machine/kernel',
  initramfs: '/machine/initramfs',
  image: '/machine/image',
  scratch: '/machine/scratch',
} as const;

/** The dynamic loader says itself what it would load, which no guess about search paths can get wrong. */
const LOADER = '/lib64/ld-linux-x86-64.so.2';
/** Wanted where they are there: some distributions build them into the binary. */
const MODULES = ['accel-tcg-x86_64.so'];
const MODULE_FOLDERS = ['/usr/lib/x86_64-linux-gnu/qemu', '/usr/lib64/qemu', '/usr/lib/qemu'];
/** qboot instead of SeaBIOS; how an ELF kernel with a PVH entry is started; how a bzImage is. */
const FIRMWARE = ['qboot.rom', 'pvh.bin', 'linuxboot_dma.bin'];
const FIRMWARE_FOLDER = '/usr/share/qemu';
const DEVICE_NODES = [
  ['null', 1, 3],
  ['urandom', 1, 9],
] as const;
const KVM_NODE = ['kvm', 10, 232] as const;
const PROGRAM_TIMEOUT_MS = 10_000;
/** Counted into the name, so that a change of the layout makes a new root. */
const LAYOUT_VERSION = 1;

export interface QemuRoot {
  readonly path: string;
  /** Hash of all that is in it. */
  readonly version: string;
}

/** Makes the root below `statePath`, or finds it there (0.1 s either way: everything in it is hashed). */
export async function prepareQemuRoot(statePath: string, acceleration: 'kvm' | 'tcg'): Promise<QemuRoot> {
  const files = await filesOfRoot();
  const hash = createHash('sha256').update(`layout ${LAYOUT_VERSION} ${acceleration}\n`);
  for (const [inside, outside] of files) {
    hash.update(
      `${inside} ${createHash('sha256')
        .update(await readFile(outside))
        .digest('hex')}\n`,
    );
  }
  const version = hash.digest('hex').slice(0, 16);
  const path = join(statePath, `qemu-root-${version}`);
  if (!(await exists(path)))
    await build(statePath, path, files, acceleration === 'kvm' ? [...DEVICE_NODES, KVM_NODE] : DEVICE_NODES);
  return { path, version };
}

/** Path in the jail to path on the host, sorted. */
async function filesOfRoot(): Promise<[string, string][]> {
  if (!(await exists(QEMU_BINARY))) {
    throw new CloisterError(
      'sandbox.start-failed',
      `There is no ${QEMU_BINARY} on this node; install QEMU for x86.`,
    );
  }
  const files = new Map<string, string>([
    [QEMU_BINARY, QEMU_BINARY],
    [LOADER, LOADER],
  ]);
  const programs = [QEMU_BINARY];
  for (const name of MODULES) {
    for (const folder of MODULE_FOLDERS) {
      const path = join(folder, name);
      if (await exists(path)) programs.push(path);
    }
  }
  for (const program of programs) {
    files.set(program, program);
    const { stdout } = await run(LOADER, ['--list', program], { timeoutMs: PROGRAM_TIMEOUT_MS });
    for (const [, path] of stdout.matchAll(/=> (\/\S+) \(0x/g)) if (path !== undefined) files.set(path, path);
  }
  for (const name of FIRMWARE)
    files.set(join(FIRMWARE_FOLDER, name), await realpath(join(FIRMWARE_FOLDER, name)));
  return [...files].sort(([a], [b]) => (a < b ? -1 : 1));
}

async function build(
  statePath: string,
  path: string,
  files: readonly [string, string][],
  nodes: readonly (readonly [string, number, number])[],
): Promise<void> {
  await mkdir(statePath, { recursive: true });
  const temporary = await mkdtemp(join(statePath, 'qemu-root-new-'));
  try {
    for (const [inside, outside] of files) {
      const target = join(temporary, inside);
      await mkdir(dirname(target), { recursive: true });
      await copyFile(outside, target);
      await chmod(target, inside === QEMU_BINARY || inside === LOADER ? 0o555 : 0o444); // which also drops setuid bits
    }
    for (const folder of ['dev', 'proc', 'machine']) await mkdir(join(temporary, folder));
    for (const inside of Object.values(INSIDE)) await writeFile(join(temporary, inside), '', { mode: 0o444 });
    for (const [name, major, minor] of nodes) {
      await run('mknod', ['-m', '666', join(temporary, 'dev', name), 'c', `${major}`, `${minor}`], {
        timeoutMs: PROGRAM_TIMEOUT_MS,
      });
    }
    await closeFolders(temporary);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    // Another agent of this node may have been faster; what it made is the same.
    if (!(await exists(path))) throw error;
  }
}

/** Readable by all, writable by root alone, whatever our umask is. */
async function closeFolders(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) await closeFolders(join(folder, entry.name));
  }
  await chmod(folder, 0o755);
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
