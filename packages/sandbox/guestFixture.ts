// A guest for tests of the host's end of the channel: it writes what a guest may write, and anything else it is told to,
// and reads what the host says.
import { type Duplex, duplexPair } from 'node:stream';
import { crc32 } from 'node:zlib';
import {
  encodeFrame,
  type GuestMessage,
  HEADER_BYTES,
  HOST_FRAME,
  MAX_PAYLOAD,
  NONCE_BYTES,
  u64,
} from './frames.ts';

/** A frame as the guest writes it: without a check. */
export function guestFrame(type: number, payload: Buffer, process = 0, fd = 0): Buffer {
  const frame = encodeFrame(type, process, fd, payload);
  frame.writeUInt32LE(0, 8);
  return frame;
}

export const HELLO_OF_NOTHING = { type: 'hello', processes: [] } as const;

export function encodeMessage(message: GuestMessage, nonce: Buffer = Buffer.alloc(NONCE_BYTES)): Buffer {
  switch (message.type) {
    case 'hello': {
      const fixed = Buffer.alloc(4);
      fixed.writeUInt16LE(1, 0);
      fixed.writeUInt16LE(message.processes.length, 2);
      const entries = message.processes.map((entry) => {
        const start = Buffer.alloc(3);
        start.writeUInt16LE(entry.process, 0);
        start.writeUInt8(['none', 'starting', 'running', 'ended'].indexOf(entry.state), 2);
        const offsets = u64(entry.stdinConsumed, entry.stdinLimit, entry.stdoutBase, entry.stderrBase);
        return Buffer.concat([start, offsets]);
      });
      return guestFrame(0x81, Buffer.concat([nonce, fixed, ...entries]));
    }
    case 'started':
      return guestFrame(0x83, Buffer.alloc(0), message.process);
    case 'data':
      return guestFrame(
        0x84,
        Buffer.concat([u64(message.offset), message.bytes]),
        message.process,
        message.fd,
      );
    case 'eof':
      return guestFrame(0x85, u64(message.offset), message.process, message.fd);
    case 'ack':
      return guestFrame(0x86, u64(message.offset, message.limit), message.process);
    case 'exit': {
      const kind = message.signal === undefined ? 0 : 1;
      const value = message.signal ?? message.exitCode;
      return guestFrame(0x88, Buffer.from([kind, value, message.oomKilled ? 1 : 0]), message.process);
    }
    case 'failed': {
      const payload = Buffer.concat([Buffer.from([message.code]), Buffer.from(message.text)]);
      return guestFrame(0x89, payload, message.process);
    }
    case 'stats': {
      const { memoryBytes, memoryPeakBytes, cpuMicros, processes, oomKills } = message.stats;
      return guestFrame(0x8a, u64(memoryBytes, memoryPeakBytes, cpuMicros, processes, oomKills));
    }
  }
}

export interface HostFrame {
  readonly type: number;
  readonly fd: number;
  readonly process: number;
  readonly payload: Buffer;
}

export class FakeGuest {
  /** For the host. */
  readonly hostEnd: Duplex;
  readonly #end: Duplex;
  readonly #frames: AsyncGenerator<HostFrame>;

  constructor() {
    [this.hostEnd, this.#end] = duplexPair();
    this.#end.on('error', () => {});
    this.#frames = this.#read();
  }

  /** The next frame that the host says. Throws when it is not whole, its check is wrong, or there is none any more. */
  async next(): Promise<HostFrame> {
    const { value, done } = await this.#frames.next();
    if (done) throw new Error('the host has closed the channel');
    return value;
  }

  /** Answers the next RESUME, and gives its payload. */
  async greet(hello: Extract<GuestMessage, { type: 'hello' }> = HELLO_OF_NOTHING): Promise<Buffer> {
    const { type, payload } = await this.next();
    if (type !== HOST_FRAME.resume) throw new Error(`a frame of type ${type} in place of RESUME`);
    await this.send(encodeMessage(hello, payload.subarray(0, NONCE_BYTES)));
    return payload;
  }

  /** Resolves when there is room again, or the host has closed the channel. */
  async send(...bytes: readonly Buffer[]): Promise<void> {
    for (const part of bytes) {
      if (this.hostEnd.destroyed || this.#end.destroyed) return;
      if (this.#end.write(part)) continue;
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#end.once('drain', resolve);
      this.hostEnd.once('close', resolve);
      await promise;
      this.#end.off('drain', resolve);
      this.hostEnd.off('close', resolve);
    }
  }

  close(): void {
    this.#end.destroy();
  }

  async *#read(): AsyncGenerator<HostFrame> {
    let held: Buffer = Buffer.alloc(0);
    for await (const chunk of this.#end) {
      held = Buffer.concat([held, chunk]);
      for (;;) {
        let at = 0;
        while (at < held.length && held[at] === 0) at += 1;
        held = held.subarray(at);
        if (held.length < HEADER_BYTES) break;
        const length = held.readUInt32LE(4);
        if (length > MAX_PAYLOAD) throw new Error(`the host sent a frame of ${length} bytes`);
        if (held.length < HEADER_BYTES + length) break;
        const payload = Buffer.from(held.subarray(HEADER_BYTES, HEADER_BYTES + length));
        if (held.readUInt32LE(8) !== crc32(payload, crc32(held.subarray(0, 8))))
          throw new Error('a wrong check');
        const frame = {
          type: held.readUInt8(0),
          fd: held.readUInt8(1),
          process: held.readUInt16LE(2),
          payload,
        };
        held = held.subarray(HEADER_BYTES + length);
        yield frame;
      }
    }
  }
}
