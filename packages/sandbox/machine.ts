// One sandbox's machine on the host: its disk and its jail, made and unmade. Knows nothing of what runs in the guest.
import { cpus } from 'node:os';
import type { Resources } from '@cloister/model/job.ts';
import type { Jails } from './jail.ts';
import type { JailProcess } from './jailProcess.ts';
import type { SandboxFolder } from './sandboxFolder.ts';
import { beginScratch, MIN_SCRATCH_MIB } from './scratch.ts';
import type { GuestArtifacts, VmmDriver } from './vmm.ts';

/**
 * While it boots, a machine runs our code alone, and on the node's account: as fast as the VMM can, whose own threads
 * work beside the virtual CPU. Under a limit of one CPU a boot takes 160 ms longer, under a twentieth of one 40 s.
 */
const BOOT_CPU_MILLI = 2_000;

export interface MachineParts {
  readonly driver: VmmDriver;
  readonly jails: Jails;
  readonly guest: GuestArtifacts;
  readonly parentCgroupPath: string;
}

export class Machine {
  readonly #parts: MachineParts;
  readonly #id: string;
  readonly #folder: SandboxFolder;

  constructor(parts: MachineParts, id: string, folder: SandboxFolder) {
    this.#parts = parts;
    this.#id = id;
    this.#folder = folder;
  }

  /** Makes the disk and starts the VMM. Whatever happens, `destroy` cleans up. */
  async start(options: {
    readonly imagePath: string;
    readonly resources: Resources;
    readonly uid: number;
    readonly signal: AbortSignal;
  }): Promise<JailProcess> {
    const { driver, jails, guest } = this.#parts;
    const { resources, uid, signal } = options;
    const { scratchPath, runPath } = this.#folder;
    const { formatted } = await beginScratch({
      path: scratchPath,
      sizeMiB: Math.max(MIN_SCRATCH_MIB, resources.diskMiB),
      uid,
      signal,
    });
    const launch = driver.launch(
      {
        guest,
        imagePath: options.imagePath,
        scratchPath,
        memoryMiB: resources.memoryMiB,
        vcpus: Math.min(Math.ceil(resources.cpuMilli / 1000), cpus().length),
      },
      runPath,
    );
    const started = jails.start({
      ...this.#name(),
      rootPath: driver.rootPath,
      launch,
      uid,
      limits: {
        memoryMiB: resources.memoryMiB + launch.memoryOverheadMiB,
        cpuMilli: Math.max(BOOT_CPU_MILLI, resources.cpuMilli),
      },
      signal,
    });
    // Both are over before anything is taken down, whichever fails.
    const [vmm, disk] = await Promise.allSettled([started, formatted]);
    if (disk.status === 'rejected') throw disk.reason;
    if (vmm.status === 'rejected') throw vmm.reason;
    return vmm.value;
  }

  /** From here on it is the tenant's time, and limited to what was asked for. */
  async limit(resources: Resources): Promise<void> {
    await this.#parts.jails.limitCpu(this.#name(), resources.cpuMilli);
  }

  /** SIGKILL to the VMM, and nothing else yet: the fastest end there is. */
  async kill(process: JailProcess): Promise<void> {
    await this.#parts.jails.kill(process);
  }

  /** Ends and removes processes, cgroup, bundle, disk and sockets: none is left when it resolves. As often as you like. */
  async destroy(): Promise<void> {
    await this.#parts.jails.destroy(this.#name());
    await this.#folder.removeMachineFiles();
  }

  #name(): { id: string; folder: string; cgroupPath: string } {
    const cgroupPath = `${this.#parts.parentCgroupPath}/${this.#id}`;
    return { id: this.#id, folder: this.#folder.path, cgroupPath };
  }
}
