// QEMU's `microvm` machine as a VMM: the smallest machine that QEMU has, with two disks, one port and a serial console,
// under KVM where it works and in software (TCG) elsewhere.
import { statSync } from 'node:fs';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { CloisterError } from '@cloister/model/errors.ts';
import { connectToSocket } from './inheritedSocket.ts';
import { INSIDE, QEMU_BINARY } from './qemuRoot.ts';
import { KVM_SYSTEM_CALLS, QEMU_SYSTEM_CALLS, RUNTIME_SYSTEM_CALLS } from './systemCalls.ts';
import type { JailDevice, MachineSpec, VmmDriver, VmmLaunch } from './vmm.ts';

/** The code that TCG has translated, at most; then it starts over. Boot fills 40 MiB; 64 and 256 boot equally fast. */
const TCG_CODE_CACHE_MIB = 64;
/**
 * Measured under TCG with machines of 256 and 512 MiB, their memory written full and their translated code too: 84 MiB
 * of QEMU's own (54 code, 30 data and stacks), 2 of the host kernel's page tables. The rest is room for 2 MiB of page
 * tables a GiB of machine, and for a little page cache (that of kernel, image and scratch is counted here, and given
 * back under pressure).
 */
const OVERHEAD_MIB = { tcg: 128, kvm: 64 } as const;
/** Requests under way on the disks run in threads of QEMU's, at most 64, beside its main loop, RCU and virtual CPUs. */
const SPARE_THREADS = 80;

export class QemuDriver implements VmmDriver {
  readonly name = 'qemu-microvm';
  readonly acceleration: 'kvm' | 'tcg';
  readonly rootPath: string;
  readonly memoryOverheadMiB: number;
  readonly #tscKhz: number;

  constructor(options: { acceleration: 'kvm' | 'tcg'; rootPath: string; tscKhz: number }) {
    this.acceleration = options.acceleration;
    this.rootPath = options.rootPath;
    this.#tscKhz = options.tscKhz;
    this.memoryOverheadMiB = OVERHEAD_MIB[options.acceleration];
  }

  launch(machine: MachineSpec, runPath: string): VmmLaunch {
    if (machine.vcpus < 1 || machine.memoryMiB < 64) {
      throw new CloisterError(
        'sandbox.start-failed',
        'A machine needs a virtual CPU and 64 MiB of memory at least.',
      );
    }
    const kvm = this.acceleration === 'kvm';
    const threads = machine.vcpus + SPARE_THREADS;
    const scratchBytes = statSync(machine.scratchPath).size;
    return {
      args: qemuArgs(this.acceleration, machine, this.#tscKhz),
      binds: [
        { outside: machine.guest.kernelPath, inside: INSIDE.kernel, writable: false },
        { outside: machine.guest.initramfsPath, inside: INSIDE.initramfs, writable: false },
        { outside: machine.imagePath, inside: INSIDE.image, writable: false },
        { outside: machine.scratchPath, inside: INSIDE.scratch, writable: true },
      ],
      sockets: [join(runPath, CHANNEL), join(runPath, CONSOLE)],
      devices: kvm ? [KVM_DEVICE] : [],
      memoryOverheadMiB: this.memoryOverheadMiB,
      threads,
      systemCalls: [
        ...new Set([...QEMU_SYSTEM_CALLS, ...RUNTIME_SYSTEM_CALLS, ...(kvm ? KVM_SYSTEM_CALLS : [])]),
      ].sort(),
      rlimits: [
        { type: 'RLIMIT_NOFILE', soft: 256, hard: 256 },
        { type: 'RLIMIT_NPROC', soft: threads, hard: threads },
        { type: 'RLIMIT_MEMLOCK', soft: 0, hard: 0 },
        // The scratch disk is the one file that it can write. Its size is fixed, and cannot be made to grow.
        { type: 'RLIMIT_FSIZE', soft: scratchBytes, hard: scratchBytes },
      ],
    };
  }

  async connectChannel(runPath: string, timeoutMs: number, signal?: AbortSignal): Promise<Duplex> {
    return await connectToSocket(join(runPath, CHANNEL), timeoutMs, signal);
  }

  async connectConsole(runPath: string, timeoutMs: number, signal?: AbortSignal): Promise<Duplex> {
    return await connectToSocket(join(runPath, CONSOLE), timeoutMs, signal);
  }
}

const CHANNEL = 'channel';
const CONSOLE = 'console';
const KVM_DEVICE: JailDevice = { path: '/dev/kvm', major: 10, minor: 232 };

/** In the order of VmmLaunch.sockets: the jail hands them over as descriptors 3 and 4. */
const CHANNEL_FD = 3;
const CONSOLE_FD = 4;

function qemuArgs(acceleration: 'kvm' | 'tcg', machine: MachineSpec, tscKhz: number): string[] {
  return [
    QEMU_BINARY,
    '-no-user-config',
    '-nodefaults',
    '-no-reboot',
    '-display',
    'none',
    '-nic',
    'none',
    '-monitor',
    'none',
    '-sandbox',
    'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
    ...(acceleration === 'kvm'
      ? ['-accel', 'kvm', '-cpu', 'host']
      : ['-accel', `tcg,thread=multi,tb-size=${TCG_CODE_CACHE_MIB}`, '-cpu', TCG_CPU]),
    // The clock chip stays: without it the kernel waits for one, for more than a second.
    '-machine',
    'microvm,isa-serial=on,pit=off,pic=off,rtc=on,mem-merge=off,dump-guest-core=off',
    '-bios',
    'qboot.rom',
    '-m',
    `${machine.memoryMiB}M`,
    '-smp',
    `${machine.vcpus}`,
    '-global',
    'virtio-mmio.force-legacy=false',
    '-kernel',
    INSIDE.kernel,
    '-initrd',
    INSIDE.initramfs,
    '-append',
    kernelCommandLine(acceleration, tscKhz),
    // wait=off: nobody needs to be connected. A guest that prints while nobody reads loses what it prints.
    '-chardev',
    `socket,id=console,fd=${CONSOLE_FD},server=on,wait=off`,
    '-serial',
    'chardev:console',
    '-chardev',
    `socket,id=channel,fd=${CHANNEL_FD},server=on,wait=off`,
    '-device',
    'virtio-serial-device,max_ports=2',
    '-device',
    'virtserialport,chardev=channel,name=port.0',
    // Locks are for images that several may open; a read-only file and one of our own need none.
    '-drive',
    `if=none,id=image,file=${INSIDE.image},format=raw,readonly=on,file.locking=off`,
    '-device',
    'virtio-blk-device,drive=image',
    // Nothing on scratch outlives the machine: flushes are ignored. What the guest frees, the host gets back.
    '-drive',
    `if=none,id=scratch,file=${INSIDE.scratch},format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap,file.locking=off`,
    '-device',
    'virtio-blk-device,drive=scratch',
  ];
}

/**
 * The processor under software emulation. x86-64-v2, which images of the newer distributions are compiled for; RDRAND,
 * by which the guest's kernel has good random numbers from its first moment (so it needs no virtio-rng); and a timer
 * that does not stop (ARAT), without which an idle guest still ticks 250 times a second, for 5% of a host's CPU.
 * Not x86-64-v3: with AVX added to this model, the guest hangs in early boot (QEMU 7.2).
 */
const TCG_CPU = 'qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+arat';

/** Parts of the kernel that nothing in a guest needs: tracefs and what fills it, self-tests, keys, hibernation. */
const UNUSED_INITCALLS = [
  'init_kprobe_trace',
  'tracer_init_tracefs',
  'trace_eval_init',
  'ftrace_check_for_weak_functions',
  'crypto_kdf108_init',
  'load_system_certificate_list',
  'snapshot_device_init',
];

/** docs/decisions/guest-boot.md has what each of these saves. */
function kernelCommandLine(acceleration: 'kvm' | 'tcg', tscKhz: number): string {
  const common = [
    'console=ttyS0',
    'quiet',
    'panic=-1',
    'reboot=t',
    '8250.nr_uarts=1',
    'random.trust_cpu=on',
    'cryptomgr.notests',
    'rcupdate.rcu_expedited=1',
    'audit=0',
    'lsm=',
    `initcall_blacklist=${UNUSED_INITCALLS.join(',')}`,
  ];
  // Under KVM the guest keeps its kernel's own protections: they cost little there, and keep the workload from init.
  if (acceleration === 'kvm') return common.join(' ');
  return [
    ...common,
    // The counter is the host's; the emulated machine gives no good way to measure it.
    `tsc_early_khz=${tscKhz}`,
    `lpj=${2 * tscKhz}`,
    'tsc=reliable',
    'no_timer_check',
    // An emulated processor does not speculate. The rest trades the guest kernel's protection of itself, behind which
    // there is nothing but one tenant's own work, for a third of the boot.
    'mitigations=off',
    'init_on_alloc=0',
    'nokaslr',
    'noreplace-smp',
  ].join(' ');
}
