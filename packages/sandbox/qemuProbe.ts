// Which acceleration this node can use. /dev/kvm being there says little: nested and paravirtual KVMs open, and then a
// guest hangs in early boot. So a whole machine is booted under it, in a jail as every other, and asked for an answer.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { gunzipSync } from 'node:zlib';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import { withTimeout } from '@cloister/kit/wait.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { GuestChannel } from './channel.ts';
import { hostTscKhz } from './hostTsc.ts';
import { type Jails, lastWords } from './jail.ts';
import { QemuDriver } from './qemu.ts';
import { prepareQemuRoot } from './qemuRoot.ts';
import { createScratch, MIN_SCRATCH_MIB } from './scratch.ts';
import type { GuestArtifacts, VmmDriver } from './vmm.ts';

/** Under a KVM that works the guest answers in less than one second. */
const BOOT_TIMEOUT_MS = 10_000;
const PROBE_MEMORY_MIB = 128;

export interface ProbeOptions {
  /** The node's state folder: the choice is remembered here. */
  readonly statePath: string;
  readonly jails: Jails;
  readonly guest: GuestArtifacts;
  /** A user that no sandbox has. */
  readonly uid: number;
  /** Below which the probe makes its cgroup. */
  readonly parentCgroupPath: string;
  /** How long a guest may take to answer. Default 10 s. */
  readonly timeoutMs?: number;
  /** Default /dev/kvm. */
  readonly kvmPath?: string;
}

export interface AccelerationChoice {
  readonly acceleration: 'kvm' | 'tcg';
  /** For people: why this one. */
  readonly why: string;
  readonly tookMs: number;
}

/**
 * Tries KVM, and takes software emulation where it does not work. Remembered for as long as nothing changes that it
 * depends on (the host's boot, QEMU, the guest), so that an agent that is restarted does not wait for it.
 */
export async function chooseAcceleration(options: ProbeOptions): Promise<AccelerationChoice> {
  const startedAt = performance.now();
  const took = (): number => Math.round(performance.now() - startedAt);
  const kvmPath = options.kvmPath ?? '/dev/kvm';
  const closed = await whyClosed(kvmPath);
  if (closed !== undefined)
    return { acceleration: 'tcg', why: `${kvmPath} cannot be opened (${closed})`, tookMs: took() };

  const root = await prepareQemuRoot(options.statePath, 'kvm');
  const key = await whatItDependsOn(root.version, options.guest);
  const remembered = await readChoice(options.statePath, key);
  if (remembered) return { ...remembered, tookMs: took() };

  let choice: Omit<AccelerationChoice, 'tookMs'>;
  try {
    const driver = new QemuDriver({ acceleration: 'kvm', rootPath: root.path, tscKhz: await hostTscKhz() });
    const answeredMs = await bootOnce(driver, options);
    choice = { acceleration: 'kvm', why: `a guest answered under KVM after ${Math.round(answeredMs)} ms` };
  } catch (error) {
    choice = { acceleration: 'tcg', why: `no guest boots under KVM here: ${describeError(error)}` };
  }
  await writeFileDurably(choicePath(options.statePath), JSON.stringify({ key, ...choice }));
  return { ...choice, tookMs: took() };
}

/** Boots a machine with nothing on its disk, until its init answers. Returns how long that took; leaves nothing. */
export async function bootOnce(
  driver: VmmDriver,
  options: Pick<ProbeOptions, 'statePath' | 'jails' | 'guest' | 'uid' | 'parentCgroupPath' | 'timeoutMs'>,
): Promise<number> {
  const startedAt = performance.now();
  const timeoutMs = options.timeoutMs ?? BOOT_TIMEOUT_MS;
  const folder = await mkdtemp(join(options.statePath, 'probe-'));
  const id = basename(folder);
  const name = { id, folder, cgroupPath: join(options.parentCgroupPath, id) };
  const paths = { image: join(folder, 'image'), scratch: join(folder, 'scratch'), run: join(folder, 'run') };
  let channel: GuestChannel | undefined;
  try {
    await mkdir(paths.run, { mode: 0o700 });
    await writeFile(paths.image, emptySquashfs(), { mode: 0o444 });
    await createScratch({ path: paths.scratch, sizeMiB: MIN_SCRATCH_MIB, uid: options.uid, reserveMiB: 0 });
    const launch = driver.launch(
      {
        guest: options.guest,
        imagePath: paths.image,
        scratchPath: paths.scratch,
        memoryMiB: PROBE_MEMORY_MIB,
        vcpus: 1,
      },
      paths.run,
    );
    await options.jails.start({
      ...name,
      rootPath: driver.rootPath,
      launch,
      uid: options.uid,
      limits: { memoryMiB: PROBE_MEMORY_MIB + launch.memoryOverheadMiB, cpuMilli: 1000 },
    });
    channel = new GuestChannel(await driver.connectChannel(paths.run, timeoutMs), {
      resumedProcesses: () => [],
      message: () => {},
    });
    await withTimeout(
      channel.ready,
      timeoutMs,
      () => new CloisterError('sandbox.boot-timeout', `The guest did not answer within ${timeoutMs} ms.`),
    );
    return performance.now() - startedAt;
  } catch (error) {
    throw new CloisterError('sandbox.boot-failed', `The VMM said: ${await lastWords(folder)}`, {
      cause: error,
    });
  } finally {
    channel?.close();
    await options.jails.destroy(name);
    await rm(folder, { recursive: true, force: true });
  }
}

async function whyClosed(path: string): Promise<string | undefined> {
  try {
    await (await open(path, 'r+')).close();
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? 'unknown';
  }
}

async function whatItDependsOn(rootVersion: string, guest: GuestArtifacts): Promise<string> {
  const hash = createHash('sha256').update(
    `${rootVersion} ${await readFileIfThere('/proc/sys/kernel/random/boot_id')}\n`,
  );
  for (const path of [guest.kernelPath, guest.initramfsPath])
    await pipeline(createReadStream(path), hash, { end: false });
  return hash.digest('hex');
}

function choicePath(statePath: string): string {
  return join(statePath, 'acceleration.json');
}

async function readChoice(
  statePath: string,
  key: string,
): Promise<Omit<AccelerationChoice, 'tookMs'> | undefined> {
  try {
    const found = JSON.parse((await readFileIfThere(choicePath(statePath))) ?? '{}') as Record<
      string,
      unknown
    >;
    const { acceleration, why } = found;
    if (found.key !== key || typeof why !== 'string' || (acceleration !== 'kvm' && acceleration !== 'tcg'))
      return undefined;
    return { acceleration, why: `${why} (remembered)` };
  } catch {
    return undefined; // not ours, or broken: look again
  }
}

/** An image with an empty folder in it, so that the guest has something to mount. As mksquashfs makes it, compressed. */
export function emptySquashfs(): Buffer {
  return gunzipSync(Buffer.from(EMPTY_SQUASHFS, 'base64'));
}

const EMPTY_SQUASHFS =
  'H4sIAAAAAAACA8soLixmZGBg4M9lyWZgYGIAAUYGQYYDQJKFAQHmQumpUPo/FCRA+bVodDuUlmaouJWcUnH6BAPLn506NxPYBAwYDY2nsDEYHGR8zNHAgKaNBSzSzzAKRsEoGAWjYBSMglEwCkbBKBgFo2AUjAIqAgC9gZAEABAAAA==';
