// What this machine is and has: the facts that people see, and the capacity that the scheduler fills.
import { stat, statfs } from 'node:fs/promises';
import { arch, cpus, hostname, release, totalmem } from 'node:os';
import { join } from 'node:path';
import type { Capacity, NodeFacts } from '@cloister/model/node.ts';
import type { GuestArtifacts, VmmDriver } from '@cloister/sandbox/vmm.ts';
import type { Settings } from './settings.ts';

const AGENT_VERSION = '0.1.0';
const MIB = 1_048_576;
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64' };

export function factsOf(driver: VmmDriver, guest: GuestArtifacts): NodeFacts {
  return {
    hostname: hostname().slice(0, 253),
    architecture: ARCHITECTURES[arch()] ?? arch(),
    hostKernel: release().slice(0, 128),
    guestKernel: guest.kernelVersion.slice(0, 128),
    vmm: driver.name,
    acceleration: driver.acceleration,
    agentVersion: AGENT_VERSION,
  };
}

/** `sandboxIds`: of those that are there, whose scratch disks are part of what may be used. */
export async function capacityOf(
  settings: Settings,
  driver: VmmDriver,
  sandboxIds: readonly string[],
): Promise<Capacity> {
  const { reserved, stateFolder } = settings;
  const { bavail, bsize } = await statfs(stateFolder);
  const ours = await Promise.all(
    sandboxIds.map((id) => allocatedBytes(join(stateFolder, 'sandboxes', id, 'scratch'))),
  );
  const diskBytes = ours.reduce((sum, bytes) => sum + bytes, bavail * bsize);
  return {
    cpuMilli: Math.max(0, cpus().length * 1000 - reserved.cpuMilli),
    memoryMiB: Math.max(0, Math.floor(totalmem() / MIB) - reserved.memoryMiB),
    diskMiB: Math.max(0, Math.floor(diskBytes / MIB) - reserved.diskMiB),
    sandboxes: settings.maxSandboxes,
    sandboxOverheadMiB: driver.memoryOverheadMiB,
  };
}

async function allocatedBytes(path: string): Promise<number> {
  const about = await stat(path).catch(() => undefined);
  return about ? about.blocks * 512 : 0;
}
