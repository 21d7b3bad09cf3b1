// The frames of the guest channel, as docs/guest-channel.md has them: encoding for the host's side, and a parser for
// what comes from the guest. The guest is hostile: the parser bounds every length before it believes it, keeps at most
// one frame in memory, and throws GuestProtocolError on the first byte that the protocol does not allow.
import { crc32 } from 'node:zlib';

export const HEADER_BYTES = 12;
export const MAX_PAYLOAD = 32_768;
export const NONCE_BYTES = 16;
/** Output that may be under way and not acknowledged, per stream. */
export const OUTPUT_WINDOW_BYTES = 262_144;
/** Bytes that a resumed connection may carry before its HELLO. */
export const MAX_HUNT_BYTES = 1_048_576;
/** START or EXEC, in as many frames as it takes. */
export const MAX_REQUEST_BYTES = 1_048_576;
/** Standard input that a guest takes before its process reads it. */
export const STDIN_WINDOW_BYTES = 65_536;
export const MAX_PROCESSES = 64;
/** In place of a descriptor, in the header of a START or EXEC. */
const MORE_FOLLOWS = 1;

export const HOST_FRAME = {
  resume: 0x01,
  start: 0x02,
  exec: 0x03,
  data: 0x04,
  eof: 0x05,
  ack: 0x06,
  signal: 0x07,
  resize: 0x08,
  shutdown: 0x09,
  stats: 0x0a,
  forget: 0x0b,
} as const;
const GUEST_FRAME = {
  hello: 0x81,
  started: 0x83,
  data: 0x84,
  eof: 0x85,
  ack: 0x86,
  exit: 0x88,
  failed: 0x89,
  stats: 0x8a,
} as const;

export type OutputFd = 1 | 2;

export interface GuestProcess {
  readonly process: number;
  readonly state: 'none' | 'starting' | 'running' | 'ended';
  readonly stdinConsumed: number;
  readonly stdinLimit: number;
  readonly stdoutBase: number;
  readonly stderrBase: number;
}

export interface GuestStats {
  readonly memoryBytes: number;
  readonly memoryPeakBytes: number;
  readonly cpuMicros: number;
  readonly processes: number;
  readonly oomKills: number;
}

export type GuestMessage =
  | { readonly type: 'hello'; readonly processes: readonly GuestProcess[] }
  | { readonly type: 'started'; readonly process: number }
  | {
      readonly type: 'data';
      readonly process: number;
      readonly fd: OutputFd;
      readonly offset: number;
      readonly bytes: Buffer;
    }
  | { readonly type: 'eof'; readonly process: number; readonly fd: OutputFd; readonly offset: number }
  | { readonly type: 'ack'; readonly process: number; readonly offset: number; readonly limit: number }
  | {
      readonly type: 'exit';
      readonly process: number;
      readonly exitCode: number;
      readonly signal: number | undefined;
      readonly oomKilled: boolean;
    }
  | { readonly type: 'failed'; readonly process: number; readonly code: number; readonly text: string }
  | { readonly type: 'stats'; readonly stats: GuestStats };

export class GuestProtocolError extends Error {
  constructor(message: string) {
    super(`the guest broke the channel's protocol: ${message}`);
    this.name = 'GuestProtocolError';
  }
}

/** One frame to the guest. `payload` at most MAX_PAYLOAD bytes. */
export function encodeFrame(type: number, process: number, fd: number, payload: Buffer): Buffer {
  if (payload.length > MAX_PAYLOAD) throw new RangeError(`a frame of ${payload.length} bytes`);
  const frame = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
  frame.writeUInt8(type, 0);
  frame.writeUInt8(fd, 1);
  frame.writeUInt16LE(process, 2);
  frame.writeUInt32LE(payload.length, 4);
  frame.writeUInt32LE(crc32(payload, crc32(frame.subarray(0, 8))), 8);
  payload.copy(frame, HEADER_BYTES);
  return frame;
}

/** A START or EXEC, cut into frames: all but the last say that more follows. */
export function encodeRequest(type: number, process: number, payload: Buffer): Buffer {
  if (payload.length > MAX_REQUEST_BYTES) throw new RangeError(`a request of ${payload.length} bytes`);
  const frames: Buffer[] = [];
  let at = 0;
  for (; payload.length - at > MAX_PAYLOAD; at += MAX_PAYLOAD)
    frames.push(encodeFrame(type, process, MORE_FOLLOWS, payload.subarray(at, at + MAX_PAYLOAD)));
  frames.push(encodeFrame(type, process, 0, payload.subarray(at)));
  return Buffer.concat(frames);
}

export function u64(...values: readonly number[]): Buffer {
  const buffer = Buffer.allocUnsafe(8 * values.length);
  for (const [index, value] of values.entries()) buffer.writeBigUInt64LE(BigInt(value), 8 * index);
  return buffer;
}

/** An output stream as the host knows it when it resumes. */
export interface ResumedProcess {
  readonly process: number;
  readonly stdoutAck: number;
  readonly stdoutLimit: number;
  readonly stderrAck: number;
  readonly stderrLimit: number;
}

/** What a new connection begins with: zeros that complete a frame cut in two, then RESUME. */
export function encodeResume(nonce: Buffer, processes: readonly ResumedProcess[]): Buffer {
  const count = Buffer.allocUnsafe(2);
  count.writeUInt16LE(processes.length);
  const entries = processes.map((entry) => {
    const id = Buffer.allocUnsafe(2);
    id.writeUInt16LE(entry.process);
    return Buffer.concat([id, u64(entry.stdoutAck, entry.stdoutLimit, entry.stderrAck, entry.stderrLimit)]);
  });
  return Buffer.concat([
    Buffer.alloc(HEADER_BYTES + MAX_PAYLOAD),
    encodeFrame(HOST_FRAME.resume, 0, 0, Buffer.concat([nonce, count, ...entries])),
  ]);
}

/** Numbers from the guest that count bytes: refused above 2^53, where JavaScript stops counting exactly. */
function readOffset(payload: Buffer, at: number): number {
  const value = payload.readBigUInt64LE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new GuestProtocolError('an offset beyond 2^53');
  return Number(value);
}

/** Statistics are the guest's word: clamped, never trusted. */
const readClamped = (payload: Buffer, at: number): number => {
  const value = payload.readBigUInt64LE(at);
  return value > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER : Number(value);
};

function expectLength(name: string, payload: Buffer, bytes: number): void {
  if (payload.length !== bytes) throw new GuestProtocolError(`${name} of ${payload.length} bytes`);
}

const STATES = ['none', 'starting', 'running', 'ended'] as const;

function parseHello(payload: Buffer): GuestMessage {
  if (payload.length < NONCE_BYTES + 4) throw new GuestProtocolError('HELLO cut short');
  const version = payload.readUInt16LE(NONCE_BYTES);
  if (version !== 1) throw new GuestProtocolError(`version ${version}`);
  const count = payload.readUInt16LE(NONCE_BYTES + 2);
  if (count > MAX_PROCESSES + 1) throw new GuestProtocolError(`${count} processes`);
  expectLength('HELLO', payload, NONCE_BYTES + 4 + count * 35);
  const processes: GuestProcess[] = [];
  for (let i = 0; i < count; i++) {
    const at = NONCE_BYTES + 4 + i * 35;
    const state = STATES[payload.readUInt8(at + 2)];
    if (!state) throw new GuestProtocolError('a process in no state');
    const process = payload.readUInt16LE(at);
    if (processes.some((other) => other.process === process))
      throw new GuestProtocolError(`process ${process} twice`);
    processes.push({
      process,
      state,
      stdinConsumed: readOffset(payload, at + 3),
      stdinLimit: readOffset(payload, at + 11),
      stdoutBase: readOffset(payload, at + 19),
      stderrBase: readOffset(payload, at + 27),
    });
  }
  return { type: 'hello', processes };
}

function parseOutputFd(fd: number): OutputFd {
  if (fd !== 1 && fd !== 2) throw new GuestProtocolError(`output on descriptor ${fd}`);
  return fd;
}

/** Control characters in a guest's text would reach terminals and logs: they become "?". */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what this removes
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '?');
}

export function parseGuestFrame(type: number, fd: number, process: number, payload: Buffer): GuestMessage {
  switch (type) {
    case GUEST_FRAME.hello:
      return parseHello(payload);
    case GUEST_FRAME.started:
      expectLength('STARTED', payload, 0);
      return { type: 'started', process };
    case GUEST_FRAME.data:
      if (payload.length < 9) throw new GuestProtocolError('DATA without data');
      return {
        type: 'data',
        process,
        fd: parseOutputFd(fd),
        offset: readOffset(payload, 0),
        bytes: payload.subarray(8),
      };
    case GUEST_FRAME.eof:
      expectLength('EOF', payload, 8);
      return { type: 'eof', process, fd: parseOutputFd(fd), offset: readOffset(payload, 0) };
    case GUEST_FRAME.ack:
      expectLength('ACK', payload, 16);
      return { type: 'ack', process, offset: readOffset(payload, 0), limit: readOffset(payload, 8) };
    case GUEST_FRAME.exit: {
      expectLength('EXIT', payload, 3);
      const value = payload.readUInt8(1);
      const signalled = payload.readUInt8(0) === 1;
      if (signalled && (value < 1 || value > 64)) throw new GuestProtocolError(`signal ${value}`);
      return {
        type: 'exit',
        process,
        exitCode: signalled ? 128 + value : value,
        signal: signalled ? value : undefined,
        oomKilled: payload.readUInt8(2) !== 0,
      };
    }
    case GUEST_FRAME.failed:
      if (payload.length < 1) throw new GuestProtocolError('FAILED without a code');
      return {
        type: 'failed',
        process,
        code: payload.readUInt8(0),
        text: printable(payload.subarray(1, 2049).toString('utf8')),
      };
    case GUEST_FRAME.stats:
      expectLength('STATS', payload, 40);
      return {
        type: 'stats',
        stats: {
          memoryBytes: readClamped(payload, 0),
          memoryPeakBytes: readClamped(payload, 8),
          cpuMicros: readClamped(payload, 16),
          processes: readClamped(payload, 24),
          oomKills: readClamped(payload, 32),
        },
      };
    default:
      throw new GuestProtocolError(`a frame of type ${type}`);
  }
}

/** The size of the frame whose header is at `at`. */
function frameBytes(bytes: Buffer, at: number): number {
  const length = bytes.readUInt32LE(at + 4);
  if (length > MAX_PAYLOAD) throw new GuestProtocolError(`a frame of ${length} bytes`);
  return HEADER_BYTES + length;
}

function parseAt(bytes: Buffer, at: number, end: number): GuestMessage {
  const [type, fd, process] = [bytes.readUInt8(at), bytes.readUInt8(at + 1), bytes.readUInt16LE(at + 2)];
  return parseGuestFrame(type, fd, process, bytes.subarray(at + HEADER_BYTES, end));
}

/**
 * Turns the guest's bytes into messages. First it hunts for the HELLO that carries `nonce`, discarding what a broken
 * connection left in the pipe; then it parses frame after frame. Memory: one frame and the chunk at hand. Every byte
 * is copied once at most, into however many pieces the guest cuts its frames.
 */
export class GuestParser {
  readonly #hello: Buffer;
  #hunting = true;
  #huntedBytes = 0;
  /** A frame that is not whole yet: room for its header, and then, when that has come, for all of it. */
  #part = Buffer.allocUnsafe(HEADER_BYTES);
  #partBytes = 0;
  #huntRest: Buffer = Buffer.alloc(0);

  constructor(nonce: Buffer) {
    this.#hello = nonce;
  }

  get synchronized(): boolean {
    return !this.#hunting;
  }

  /** What is kept until more comes: one frame at most. */
  get heldBytes(): number {
    return this.#hunting ? this.#huntRest.length : this.#partBytes;
  }

  /** The messages completed by `chunk`. Data messages point into it. */
  *push(chunk: Buffer): Generator<GuestMessage> {
    const bytes = this.#hunting ? this.#hunt(chunk) : chunk;
    let at = 0;
    while (at < bytes.length) {
      if (this.#partBytes === 0) {
        if (bytes[at] === 0) {
          at += 1;
          continue;
        }
        const end = bytes.length - at < HEADER_BYTES ? undefined : at + frameBytes(bytes, at);
        if (end !== undefined && end <= bytes.length) {
          yield parseAt(bytes, at, end);
          at = end;
          continue;
        }
      }
      at += this.#add(bytes, at);
      if (this.#partBytes < this.#part.length) continue;
      const whole = this.#part;
      this.#part = Buffer.allocUnsafe(HEADER_BYTES);
      this.#partBytes = 0;
      yield parseAt(whole, 0, whole.length);
    }
  }

  /** Moves bytes to the frame that is not whole, and says how many. */
  #add(bytes: Buffer, at: number): number {
    const count = bytes.copy(this.#part, this.#partBytes, at);
    this.#partBytes += count;
    if (this.#partBytes === HEADER_BYTES && this.#part.length === HEADER_BYTES) {
      const whole = Buffer.allocUnsafe(frameBytes(this.#part, 0));
      this.#part.copy(whole);
      this.#part = whole;
    }
    return count;
  }

  /** The bytes from the HELLO's header on: none while it has not come. */
  #hunt(chunk: Buffer): Buffer {
    const buffer = this.#huntRest.length === 0 ? chunk : Buffer.concat([this.#huntRest, chunk]);
    for (let from = 0; ; ) {
      const nonceAt = buffer.indexOf(this.#hello, from);
      if (nonceAt < 0) break;
      const at = nonceAt - HEADER_BYTES;
      if (at >= 0 && buffer[at] === GUEST_FRAME.hello) {
        this.#hunting = false;
        this.#huntRest = Buffer.alloc(0);
        return buffer.subarray(at);
      }
      from = nonceAt + 1;
    }
    const keep = Math.min(buffer.length, HEADER_BYTES + NONCE_BYTES - 1);
    this.#huntedBytes += buffer.length - keep;
    if (this.#huntedBytes > MAX_HUNT_BYTES) throw new GuestProtocolError('no HELLO among its first bytes');
    this.#huntRest = Buffer.from(buffer.subarray(buffer.length - keep));
    return Buffer.alloc(0);
  }
}
