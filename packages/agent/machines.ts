// Everything under the sandboxes, opened in order: the guest, jails, the VMM's driver, and the sandboxes that are there.
import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { parseJson } from '@cloister/link/json.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { hostTscKhz } from '@cloister/sandbox/hostTsc.ts';
import { Jails } from '@cloister/sandbox/jail.ts';
import { QemuDriver } from '@cloister/sandbox/qemu.ts';
import { chooseAcceleration } from '@cloister/sandbox/qemuProbe.ts';
import { prepareQemuRoot } from '@cloister/sandbox/qemuRoot.ts';
import type { Sandbox } from '@cloister/sandbox/sandbox.ts';
import { Sandboxes } from '@cloister/sandbox/sandboxes.ts';
import type { GuestArtifacts, VmmDriver } from '@cloister/sandbox/vmm.ts';
import Type from 'typebox';
import { cgroupPathOf, type Settings } from './settings.ts';

export interface Machines {
  readonly guest: GuestArtifacts;
  readonly driver: VmmDriver;
  readonly jails: Jails;
  readonly sandboxes: Sandboxes;
}

const ManifestSchema = Type.Object({
  kernelVersion: Type.String({ maxLength: 128 }),
  kernel: Type.String({ pattern: '^[A-Za-z0-9._-]+$' }),
  initramfs: Type.String({ pattern: '^[A-Za-z0-9._-]+$' }),
});

export async function openMachines(
  settings: Settings,
  parts: { readonly clock: Clock; readonly logger: Logger; readonly onChange: (sandbox: Sandbox) => void },
): Promise<Machines> {
  const { stateFolder: statePath, firstUid, maxSandboxes } = settings;
  const guest = await readGuest(settings.guestFolder);
  const jails = await Jails.open({ statePath: join(statePath, 'jails') });
  const parentCgroupPath = cgroupPathOf(settings);
  const choice = await chooseAcceleration({ statePath, jails, guest, uid: firstUid, parentCgroupPath });
  parts.logger.info(choice, 'chose how to run machines');
  const { acceleration } = choice;
  const root = await prepareQemuRoot(statePath, acceleration);
  const driver = new QemuDriver({ acceleration, rootPath: root.path, tscKhz: await hostTscKhz() });
  const sandboxes = await Sandboxes.open({
    statePath,
    driver,
    jails,
    guest,
    parentCgroupPath,
    // The first is the probe's. Twice as many as sandboxes: one that is being taken down still has its own.
    uids: { first: firstUid + 1, count: 2 * maxSandboxes },
    bootTimeoutMs: settings.bootTimeoutMs,
    outputLimits: settings.outputLimits,
    ...parts,
  });
  await removeProbes(statePath);
  return { guest, driver, jails, sandboxes };
}

/** Of agents that were killed while they tried a boot. Their machines have gone, as those of no sandbox. */
async function removeProbes(statePath: string): Promise<void> {
  for (const name of await readdir(statePath))
    if (name.startsWith('probe-')) await rm(join(statePath, name), { recursive: true, force: true });
}

async function readGuest(folder: string): Promise<GuestArtifacts> {
  try {
    const manifest = parseJson(
      ManifestSchema,
      await readFile(join(folder, 'manifest.json'), 'utf8'),
      'the manifest',
    );
    return {
      kernelPath: join(folder, manifest.kernel),
      initramfsPath: join(folder, manifest.initramfs),
      kernelVersion: manifest.kernelVersion,
    };
  } catch (error) {
    throw new CloisterError('unavailable', `There is no guest in ${folder}. Build it with "make guest"`, {
      cause: error,
    });
  }
}
