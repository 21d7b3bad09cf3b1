// The OCI bundle of a jail: what an OCI runtime needs to know to run a VMM with nothing but what it declared. Pure: it
// makes the configuration, jail.ts writes and runs it.
import { join } from 'node:path';
import type { VmmLaunch } from './vmm.ts';

export interface JailLimits {
  /** Everything the jail may have in memory: the machine's and the VMM's own, page cache included. */
  readonly memoryMiB: number;
  /** Thousandths of a CPU. */
  readonly cpuMilli: number;
}

export interface JailOptions {
  readonly rootPath: string;
  readonly launch: VmmLaunch;
  /** User and group of the jail, nobody else's. */
  readonly uid: number;
  /** Absolute, the same in every cgroup hierarchy. */
  readonly cgroupPath: string;
  readonly limits: JailLimits;
  /** Joined when given; otherwise the jail gets a new one, with nothing in it, not even a loopback that is up. */
  readonly networkNamespacePath?: string;
}

const MIB = 1_048_576;
const CPU_PERIOD_US = 100_000;
/** The kernel takes no smaller quota. */
const MIN_CPU_QUOTA_US = 1_000;
const AF_UNIX = 1;
const CLONE_THREAD = 0x10000;
const ENOSYS = 38;
const EPERM = 1;
/** With little memory left, the host ends a machine before the agent that looks after all of them. */
const OOM_SCORE_ADJ = 500;

export function cpuQuota(cpuMilli: number): { readonly quotaUs: number; readonly periodUs: number } {
  const quotaUs = Math.max(MIN_CPU_QUOTA_US, Math.round((cpuMilli * CPU_PERIOD_US) / 1000));
  return { quotaUs, periodUs: CPU_PERIOD_US };
}

/** config.json, as the OCI runtime specification has it. */
export function jailConfig(options: JailOptions): object {
  const { launch, limits, uid } = options;
  const devices = [
    { path: '/dev/null', major: 1, minor: 3 },
    { path: '/dev/urandom', major: 1, minor: 9 },
    ...launch.devices,
  ];
  const memoryBytes = limits.memoryMiB * MIB;
  return {
    ociVersion: '1.0.2',
    hostname: 'localhost',
    root: { path: options.rootPath, readonly: true },
    process: {
      terminal: false,
      user: { uid, gid: uid, umask: 0o077 },
      args: launch.args,
      env: [],
      cwd: '/',
      capabilities: { bounding: [], effective: [], inheritable: [], permitted: [], ambient: [] },
      noNewPrivileges: true,
      oomScoreAdj: OOM_SCORE_ADJ,
      rlimits: [{ type: 'RLIMIT_CORE', soft: 0, hard: 0 }, ...launch.rlimits],
    },
    mounts: mounts(options.rootPath, launch),
    linux: {
      cgroupsPath: options.cgroupPath,
      namespaces: [
        { type: 'pid' },
        { type: 'ipc' },
        { type: 'uts' },
        { type: 'mount' },
        { type: 'cgroup' },
        {
          type: 'network',
          ...(options.networkNamespacePath === undefined ? {} : { path: options.networkNamespacePath }),
        },
      ],
      rootfsPropagation: 'private',
      resources: {
        devices: [
          { allow: false, access: 'rwm' },
          ...devices.map(({ major, minor }) => ({ allow: true, type: 'c', major, minor, access: 'rw' })),
        ],
        // The limit on memory and swap together is that on memory: nothing of a tenant's is written to the host's swap.
        memory: { limit: memoryBytes, swap: memoryBytes },
        cpu: { period: CPU_PERIOD_US, quota: cpuQuota(limits.cpuMilli).quotaUs },
        pids: { limit: launch.threads },
      },
      seccomp: seccomp(launch.systemCalls),
    },
  };
}

/** Every mount costs a millisecond or so of each start: nothing is mounted that the VMM does not need. */
function mounts(rootPath: string, launch: VmmLaunch): object[] {
  return [
    // The runtime itself needs /proc to start anything. Only the jail's own processes are in it: no /proc/sys, no
    // kallsyms, nothing to mask.
    {
      destination: '/proc',
      type: 'proc',
      source: 'proc',
      options: ['ro', 'nosuid', 'nodev', 'noexec', 'subset=pid', 'hidepid=2'],
    },
    // The device nodes of the root itself. A bind over /dev keeps the runtime from making the ones that it gives to
    // every container, which would be in the root that all jails share.
    {
      destination: '/dev',
      type: 'bind',
      source: join(rootPath, 'dev'),
      options: ['bind', 'ro', 'nosuid', 'noexec'],
    },
    ...launch.binds.map((bind) => ({
      destination: bind.inside,
      type: 'bind',
      source: bind.outside,
      options: ['bind', bind.writable ? 'rw' : 'ro', 'nosuid', 'nodev', 'noexec', 'private'],
    })),
  ];
}

/**
 * Refuses everything but the names given. A refused call fails with EPERM, which a VMM may handle, rather than killing
 * it. Some calls are never allowed as a whole, even when they are listed:
 *  - clone makes threads, never processes; clone3 hides its flags from the filter, so it "does not exist" (and the
 *    C library falls back to clone);
 *  - socket makes unix sockets only.
 */
function seccomp(systemCalls: readonly string[]): object {
  const whole = systemCalls.filter((name) => name !== 'clone' && name !== 'clone3' && name !== 'socket');
  const rules: object[] = [
    { names: whole, action: 'SCMP_ACT_ALLOW' },
    { names: ['clone3'], action: 'SCMP_ACT_ERRNO', errnoRet: ENOSYS },
  ];
  if (systemCalls.includes('clone')) {
    rules.push({
      names: ['clone'],
      action: 'SCMP_ACT_ALLOW',
      args: [{ index: 0, value: CLONE_THREAD, valueTwo: CLONE_THREAD, op: 'SCMP_CMP_MASKED_EQ' }],
    });
  }
  if (systemCalls.includes('socket')) {
    rules.push({
      names: ['socket'],
      action: 'SCMP_ACT_ALLOW',
      args: [{ index: 0, value: AF_UNIX, op: 'SCMP_CMP_EQ' }],
    });
  }
  return {
    defaultAction: 'SCMP_ACT_ERRNO',
    defaultErrnoRet: EPERM,
    architectures: ['SCMP_ARCH_X86_64'],
    syscalls: rules,
  };
}
