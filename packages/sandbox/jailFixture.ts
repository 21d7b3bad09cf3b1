// For tests: a node's worth of jails in a temporary folder, and folders of sandboxes in it, all removed at the end.
import { mkdir, mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { type JailName, Jails } from './jail.ts';
import { cgroupMounts, childCgroups } from './jailCgroup.ts';
import type { GuestArtifacts } from './vmm.ts';

const BUILT = join(import.meta.dirname, '../../build/guest');

/** Made by `make guest`. */
export const builtGuest: GuestArtifacts = {
  kernelPath: join(BUILT, 'vmlinux'),
  initramfsPath: join(BUILT, 'initramfs.cpio'),
  kernelVersion: 'as built',
};

export const TEST_UID = 1_700_001;

export class JailFixture implements AsyncDisposable {
  readonly folder: string;
  readonly jails: Jails;
  /** Of this fixture alone: tests run at once. */
  readonly parentCgroupPath: string;
  readonly #names: JailName[] = [];

  private constructor(folder: string, jails: Jails) {
    this.folder = folder;
    this.jails = jails;
    this.parentCgroupPath = `/${basename(folder)}`;
  }

  static async open(): Promise<JailFixture> {
    const folder = await mkdtemp(join(tmpdir(), 'jail-test-'));
    return new JailFixture(folder, await Jails.open({ statePath: join(folder, 'runtime') }));
  }

  /** A new sandbox's folder, with "run" in it. */
  async name(): Promise<JailName> {
    const id = `jail-${this.#names.length}`;
    const folder = join(this.folder, id);
    await mkdir(join(folder, 'run'), { recursive: true });
    const name = { id, folder, cgroupPath: `${this.parentCgroupPath}/${id}` };
    this.#names.push(name);
    return name;
  }

  /** Everything that a jail could leave behind, as text: nothing when it is gone. */
  async leftOf(name: JailName): Promise<string[]> {
    const left: string[] = [];
    for (const pid of await processesWritingBelow(name.folder)) left.push(`process ${pid}`);
    for (const cgroup of await childCgroups(await cgroupMounts(), this.parentCgroupPath)) {
      if (cgroup === name.id) left.push(`cgroup ${cgroup}`);
    }
    for (const note of await readdir(join(this.folder, 'runtime')))
      if (note === name.id) left.push(`note ${note}`);
    for (const file of await readdir(name.folder)) if (file === 'jail') left.push('bundle');
    const mounts = await readFile('/proc/self/mountinfo', 'utf8');
    if (mounts.includes(name.folder)) left.push('mount');
    return left;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const name of this.#names) await this.jails.destroy(name);
    await this.jails.cleanupParentCgroup(this.parentCgroupPath);
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** A jail's processes, from the runtime's first on, have its log as their output. */
async function processesWritingBelow(folder: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const target = await readlink(`/proc/${pid}/fd/2`).catch(() => '');
    if (target.startsWith(`${folder}/`)) found.push(pid);
  }
  return found;
}
