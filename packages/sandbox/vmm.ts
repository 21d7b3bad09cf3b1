// What a virtual machine monitor must be able to do for the rest of the system, which never knows which one it is.
// A driver is a description, not a process: it says what to run in the jail and how to reach the guest from outside.
import type { Duplex } from 'node:stream';

/** The guest's side of every machine: built by `make guest`, the same for all sandboxes of a node. */
export interface GuestArtifacts {
  readonly kernelPath: string;
  readonly initramfsPath: string;
  readonly kernelVersion: string;
}

export interface MachineSpec {
  readonly guest: GuestArtifacts;
  /** Read-only block image; the guest's vda. */
  readonly imagePath: string;
  /** Raw file, ext4 inside, writable by the jail's uid; the guest's vdb. */
  readonly scratchPath: string;
  readonly memoryMiB: number;
  /** Virtual CPUs, at least 1. How much of them it may use is the jail's cgroup's business. */
  readonly vcpus: number;
}

/** A file or folder of the host that the jail sees at `inside`. */
export interface JailBind {
  readonly outside: string;
  readonly inside: string;
  readonly writable: boolean;
}

export interface JailDevice {
  readonly path: string;
  readonly major: number;
  readonly minor: number;
}

/** What to run in the jail for one machine. */
export interface VmmLaunch {
  /** Inside the jail. */
  readonly args: readonly string[];
  readonly binds: readonly JailBind[];
  /**
   * Unix sockets of the host, made and listening before the VMM starts, which it inherits as descriptors 3, 4, and so
   * on. So it needs neither a folder to write in nor the right to make a socket, and whoever connects never waits.
   */
  readonly sockets: readonly string[];
  readonly devices: readonly JailDevice[];
  /** Host memory that the machine may take beyond `memoryMiB`: the VMM's own, and page tables. */
  readonly memoryOverheadMiB: number;
  /** Threads that the VMM may have at once, those of a Go runtime that starts it included. */
  readonly threads: number;
  /** Names of system calls that the VMM needs; all others fail with EPERM. */
  readonly systemCalls: readonly string[];
  readonly rlimits: readonly { readonly type: string; readonly soft: number; readonly hard: number }[];
}

export interface VmmDriver {
  /** As in NodeFacts.vmm, for example "qemu-microvm". */
  readonly name: string;
  readonly acceleration: 'kvm' | 'tcg';
  /** Read-only root of every jail of this driver: the VMM, its libraries and firmware, nothing else. */
  readonly rootPath: string;
  /** Host memory that one machine may take beyond its own, in MiB. */
  readonly memoryOverheadMiB: number;
  /** `runPath`: a folder of this sandbox on the host, 0700 and the agent's own, for the VMM's sockets. */
  launch(machine: MachineSpec, runPath: string): VmmLaunch;
  /** Connects to the guest's channel; waits for the VMM to offer it. Rejects when it does not within `timeoutMs`. */
  connectChannel(runPath: string, timeoutMs: number, signal?: AbortSignal): Promise<Duplex>;
  /** Connects to the guest's console (its kernel's last words); read-only, hostile text. */
  connectConsole(runPath: string, timeoutMs: number, signal?: AbortSignal): Promise<Duplex>;
}
