// A small harness: boots the built guest under QEMU's software emulation and speaks the channel's protocol to it, with
// every output byte kept and the acknowledgements under the test's control.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  encodeFrame,
  encodeRequest,
  encodeResume,
  type GuestMessage,
  GuestParser,
  HOST_FRAME,
  NONCE_BYTES,
  u64,
} from '../../packages/sandbox/frames.ts';
import { type Command, processObject, request, startRequest } from './request.ts';

const built = process.env['GUEST_BUILD'] ?? join(import.meta.dirname, '../../build/guest');
const WINDOW_BYTES = 262_144;

/** As the QEMU driver has it: docs/decisions/guest-boot.md says why. */
const UNUSED_INITCALLS =
  'init_kprobe_trace,tracer_init_tracefs,trace_eval_init,ftrace_check_for_weak_functions,crypto_kdf108_init,' +
  'load_system_certificate_list,snapshot_device_init';

/** The host's TSC in kHz: the guest must not try to measure it under emulation. */
function tscKhz(): number {
  const mhz = /^cpu MHz\s*: ([\d.]+)/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '2000';
  return Math.round(Number(mhz) * 1000);
}

export function kernelCommandLine(extra = ''): string {
  const khz = tscKhz();
  return (
    `console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz=${khz} lpj=${2 * khz} tsc=reliable no_timer_check ` +
    'mitigations=off init_on_alloc=0 nokaslr random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1 audit=0 lsm= noreplace-smp ' +
    `8250.nr_uarts=1 initcall_blacklist=${UNUSED_INITCALLS} ${extra}`
  );
}

/** What the host knows of one process. */
class Known {
  readonly chunks: [Buffer[], Buffer[]] = [[], []];
  readonly offsets: [number, number] = [0, 0];
  readonly ends: [number | undefined, number | undefined] = [undefined, undefined];
  started = false;
  inputConsumed = 0;
  inputLimit = 0;
  inputSent = 0;
  exit: { exitCode: number; signal: number | undefined; oomKilled: boolean } | undefined;
  failed: { code: number; text: string } | undefined;
  text(fd: 1 | 2 = 1): string {
    return Buffer.concat(this.chunks[fd === 1 ? 0 : 1]).toString();
  }
}

export class Machine {
  readonly folder: string;
  readonly processes = new Map<number, Known>();
  readonly #qemu: ChildProcess;
  readonly #changed = new EventEmitter();
  readonly startedAtMs = performance.now();
  stats: Extract<GuestMessage, { type: 'stats' }>['stats'] | undefined;
  hello: Extract<GuestMessage, { type: 'hello' }> | undefined;
  acknowledges = true;
  exited = false;
  failure: unknown;
  #socket: Socket | undefined;

  constructor(image: string, options: { memoryMiB?: number; commandLine?: string } = {}) {
    this.folder = mkdtempSync(join(tmpdir(), 'guest-machine-'));
    execFileSync('truncate', ['-s', '256M', join(this.folder, 'scratch')]);
    const layout = '-q -F -O ^has_journal -E lazy_itable_init=1'.split(' ');
    execFileSync('mkfs.ext4', [...layout, join(this.folder, 'scratch')]);
    this.startedAtMs = performance.now();
    const fixed = [
      '-accel tcg -M microvm,isa-serial=on,pit=off,pic=off,rtc=on -bios qboot.rom -global virtio-mmio.force-legacy=false',
      '-nodefaults -no-user-config -no-reboot -display none',
      '-device virtio-serial-device,max_ports=2 -device virtserialport,chardev=channel,name=port.0',
      '-device virtio-blk-device,drive=image -device virtio-blk-device,drive=scratch',
    ];
    const args = fixed
      .flatMap((line) => line.split(' '))
      .concat(
        ['-m', String(options.memoryMiB ?? 256), '-serial', `file:${this.folder}/console`],
        ['-chardev', `socket,id=channel,path=${this.folder}/channel,server=on,wait=off`],
        ['-drive', `if=none,id=image,file=${image},format=raw,readonly=on`],
        ['-drive', `if=none,id=scratch,file=${this.folder}/scratch,format=raw,cache=unsafe`],
        ['-kernel', join(built, 'vmlinux'), '-initrd', join(built, 'initramfs.cpio')],
        ['-append', kernelCommandLine(options.commandLine)],
      );
    this.#qemu = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'inherit', 'inherit'] });
    this.#qemu.once('exit', () => {
      this.exited = true;
      this.#changed.emit('changed');
    });
  }

  get pid(): number {
    return this.#qemu.pid ?? 0;
  }

  console(): string {
    return readFileSync(join(this.folder, 'console'), 'utf8');
  }

  of(id = 0): Known {
    const known = this.processes.get(id) ?? new Known();
    this.processes.set(id, known);
    return known;
  }

  /** Waits until `check` holds, looked at after every message. */
  async until(check: () => boolean, what: string, timeoutMs = 20_000): Promise<void> {
    const signal = AbortSignal.timeout(timeoutMs);
    while (!check()) {
      if (this.failure) throw this.failure;
      if (this.exited) throw new Error(`the machine ended before ${what}\n${this.console()}`);
      try {
        await once(this.#changed, 'changed', { signal });
      } catch {
        throw new Error(`no ${what} within ${timeoutMs} ms\n${this.console()}`);
      }
    }
  }

  async connect(): Promise<void> {
    this.disconnect();
    const path = join(this.folder, 'channel');
    for (let tries = 0; !existsSync(path) && tries < 1000; tries++) await delay(5);
    const socket = createConnection(path);
    this.#socket = socket;
    await once(socket, 'connect');
    const nonce = randomBytes(NONCE_BYTES);
    const parser = new GuestParser(nonce);
    this.hello = undefined;
    socket.on('data', (chunk: Buffer) => {
      if (socket !== this.#socket) return;
      try {
        for (const message of parser.push(chunk)) this.#receive(message);
      } catch (error) {
        this.failure = error;
      }
      this.#changed.emit('changed');
    });
    socket.on('error', () => {});
    const entries = [...this.processes].map(([process, known]) => ({
      process,
      stdoutAck: known.offsets[0],
      stdoutLimit: known.offsets[0] + WINDOW_BYTES,
      stderrAck: known.offsets[1],
      stderrLimit: known.offsets[1] + WINDOW_BYTES,
    }));
    socket.write(encodeResume(nonce, entries));
    await this.until(() => this.hello !== undefined, 'HELLO');
  }

  disconnect(): void {
    this.#socket?.destroy();
    this.#socket = undefined;
  }

  #receive(message: GuestMessage): void {
    switch (message.type) {
      case 'hello':
        this.hello = message;
        for (const entry of message.processes) {
          const known = this.of(entry.process);
          known.inputConsumed = known.inputSent = entry.stdinConsumed;
          known.inputLimit = entry.stdinLimit;
          known.started ||= entry.state >= 'running' && entry.state !== 'starting';
        }
        return;
      case 'started':
        this.of(message.process).started = true;
        return;
      case 'data': {
        const known = this.of(message.process);
        const which = message.fd === 1 ? 0 : 1;
        if (message.offset !== known.offsets[which])
          throw new Error(`a gap: ${message.offset} after ${known.offsets[which]}`);
        known.chunks[which].push(Buffer.from(message.bytes));
        known.offsets[which] += message.bytes.length;
        if (this.acknowledges) this.acknowledge(message.process, message.fd);
        return;
      }
      case 'eof': {
        const known = this.of(message.process);
        if (message.offset !== known.offsets[message.fd - 1])
          throw new Error('an end that is not at the end');
        known.ends[message.fd - 1] = message.offset;
        return;
      }
      case 'ack':
        this.of(message.process).inputConsumed = message.offset;
        this.of(message.process).inputLimit = message.limit;
        return;
      case 'exit':
        this.of(message.process).exit = message;
        return;
      case 'failed':
        this.of(message.process).failed = message;
        return;
      case 'stats':
        this.stats = message.stats;
    }
  }

  send(type: number, process: number, payload: Buffer, fd = 0): void {
    this.#socket?.write(encodeFrame(type, process, fd, payload));
  }

  raw(bytes: Buffer): void {
    this.#socket?.write(bytes);
  }

  acknowledge(process: number, fd: 1 | 2): void {
    const offset = this.of(process).offsets[fd === 1 ? 0 : 1];
    this.send(HOST_FRAME.ack, process, u64(offset, offset + WINDOW_BYTES), fd);
  }

  start(command: Command): Known {
    this.raw(encodeRequest(HOST_FRAME.start, 0, Buffer.from(JSON.stringify(startRequest(command)))));
    return this.of(0);
  }

  exec(id: number, command: Command): Known {
    this.processes.delete(id);
    const exec = { process: JSON.stringify(processObject(command)), ...request(command) };
    this.raw(encodeRequest(HOST_FRAME.exec, id, Buffer.from(JSON.stringify(exec))));
    return this.of(id);
  }

  input(id: number, text: string | Buffer): void {
    const known = this.of(id);
    const bytes = Buffer.from(text);
    for (let at = 0; at < bytes.length; at += 16_384) {
      const part = bytes.subarray(at, at + 16_384);
      this.send(HOST_FRAME.data, id, Buffer.concat([u64(known.inputSent), part]));
      known.inputSent += part.length;
    }
  }

  endInput(id: number): void {
    this.send(HOST_FRAME.eof, id, u64(this.of(id).inputSent));
  }

  signal(id: number, signal: number): void {
    const payload = Buffer.alloc(4);
    payload.writeUInt32LE(signal);
    this.send(HOST_FRAME.signal, id, payload);
  }

  async ended(id = 0): Promise<Known> {
    const known = this.of(id);
    await this.until(() => known.exit !== undefined || known.failed !== undefined, `end of process ${id}`);
    return known;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.disconnect();
    if (!this.exited) {
      this.#qemu.kill('SIGKILL');
      await once(this.#qemu, 'exit');
    }
    rmSync(this.folder, { recursive: true });
  }
}
