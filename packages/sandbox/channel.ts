// The host's end of the guest channel: one connection after another to the same guest, resumed without loss. It knows
// frames, windows and offsets; what output means, and where it goes, is its listener's business (see sandbox.ts).
import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { CloisterError } from '@cloister/model/errors.ts';
import {
  encodeFrame,
  encodeRequest,
  encodeResume,
  type GuestMessage,
  GuestParser,
  GuestProtocolError,
  HOST_FRAME,
  MAX_PAYLOAD,
  MAX_REQUEST_BYTES,
  NONCE_BYTES,
  type OutputFd,
  type ResumedProcess,
  u64,
} from './frames.ts';
import { GuestOrder } from './guestOrder.ts';

/** RESUME is said again this often until HELLO comes: the guest may still be booting, or have lost the first one. */
const RESUME_EVERY_MS = 500;
/** Bytes that may wait for the guest to read before the channel is given up: the guest does not read at all. */
const MAX_UNSENT_BYTES = 4 * 1_048_576;
/**
 * A guest that floods its host with tiny frames is not read until it is back at this rate: output in single bytes then
 * costs the agent 5% of a CPU (20% at four times the rate), and whole frames could still be 400 MB/s. A chunk counts as
 * a frame: pieces of one cost as much.
 */
const RATE_WINDOW_MS = 100;
const MAX_FRAMES_PER_WINDOW = 2_500;

export interface ChannelListener {
  /** The output offsets that are safe, asked for once. */
  resumedProcesses(): readonly ResumedProcess[];
  /**
   * Called in order, for processes that were begun or resumed and not forgotten, with offsets that follow one another
   * and limits that are kept. A throw ends the channel as a protocol error does.
   */
  message(message: GuestMessage): void;
}

/** START or EXEC as the guest reads it. Throws `request.invalid` when it is over 1 MiB. */
export function requestPayload(request: unknown): Buffer {
  const payload = Buffer.from(JSON.stringify(request));
  if (payload.length > MAX_REQUEST_BYTES) {
    throw new CloisterError(
      'request.invalid',
      `The command line and environment take ${payload.length} bytes as the guest is told them; it takes ${MAX_REQUEST_BYTES}.`,
    );
  }
  return payload;
}

export class GuestChannel {
  readonly #stream: Duplex;
  readonly #listener: ChannelListener;
  readonly #parser: GuestParser;
  readonly #order: GuestOrder;
  readonly #resume: Buffer;
  readonly #closed = Promise.withResolvers<Error | undefined>();
  readonly #ready = Promise.withResolvers<void>();
  #drained: PromiseWithResolvers<void> | undefined;
  #resumeTimer: NodeJS.Timeout | undefined;
  #pauseTimer: NodeJS.Timeout | undefined;
  #windowStart = 0;
  #windowFrames = 0;

  /** Takes the connection over. `ready` says when the guest has answered. */
  constructor(stream: Duplex, listener: ChannelListener) {
    const nonce = randomBytes(NONCE_BYTES);
    const resumed = listener.resumedProcesses();
    this.#stream = stream;
    this.#listener = listener;
    this.#parser = new GuestParser(nonce);
    this.#order = new GuestOrder(resumed);
    this.#resume = encodeResume(nonce, resumed);
    this.#ready.promise.catch(() => {}); // whoever does not wait for it learns of the end from `closed`
    stream.on('data', (chunk: Buffer) => this.#receive(chunk));
    stream.on('drain', () => this.#wake());
    stream.on('error', (error) => this.#end(error));
    stream.once('close', () => this.#end(undefined));
    stream.once('end', () => this.#end(undefined));
    this.#sayResume();
  }

  /** Resolves when the guest answered HELLO; rejects when the channel ends before. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** Resolves once, with the error that ended the channel, or undefined when the other side closed it. */
  get closed(): Promise<Error | undefined> {
    return this.#closed.promise;
  }

  #sayResume(): void {
    if (this.#stream.destroyed) return;
    // Not over and over into a pipe that nobody reads yet: the first one waits there for the guest.
    if (this.#stream.writableLength === 0) this.#stream.write(this.#resume);
    this.#resumeTimer = setTimeout(() => this.#sayResume(), RESUME_EVERY_MS);
  }

  #receive(chunk: Buffer): void {
    let frames = 1;
    try {
      for (const message of this.#parser.push(chunk)) {
        frames += 1;
        if (!this.#order.admit(message)) continue;
        this.#listener.message(message);
        if (this.#stream.destroyed) return; // the listener closed it
        if (message.type === 'hello') {
          clearTimeout(this.#resumeTimer);
          this.#ready.resolve();
        }
      }
    } catch (error) {
      this.#end(error instanceof Error ? error : new Error(String(error)));
      return;
    }
    this.#keepToRate(frames);
  }

  #keepToRate(frames: number): void {
    const now = performance.now();
    if (now - this.#windowStart >= RATE_WINDOW_MS) {
      this.#windowStart = now;
      this.#windowFrames = 0;
    }
    this.#windowFrames += frames;
    if (this.#windowFrames <= MAX_FRAMES_PER_WINDOW || this.#stream.isPaused()) return;
    this.#stream.pause();
    const payBackMs = (RATE_WINDOW_MS * this.#windowFrames) / MAX_FRAMES_PER_WINDOW;
    this.#pauseTimer = setTimeout(() => this.#stream.resume(), this.#windowStart + payBackMs - now);
  }

  #end(error: Error | undefined): void {
    clearTimeout(this.#resumeTimer);
    clearTimeout(this.#pauseTimer);
    this.#stream.destroy();
    this.#ready.reject(
      error ?? new CloisterError('sandbox.vmm-died', 'The channel to the guest was closed.'),
    );
    this.#closed.resolve(error);
    this.#wake();
  }

  #wake(): void {
    this.#drained?.resolve();
    this.#drained = undefined;
  }

  #send(type: number, process: number, payload: Buffer, fd = 0): void {
    this.#write(encodeFrame(type, process, fd, payload));
  }

  #write(frames: Buffer): void {
    if (this.#stream.destroyed) return; // what must not be lost is said again after the next resume
    this.#stream.write(frames);
    if (this.#stream.writableLength > MAX_UNSENT_BYTES)
      this.#end(new GuestProtocolError('it does not read what is sent to it'));
  }

  #request(type: number, process: number, request: unknown): void {
    const payload = requestPayload(request);
    this.#order.begin(process);
    this.#write(encodeRequest(type, process, payload));
  }

  /** Throws `request.invalid` when the request is over 1 MiB; nothing was said then. */
  start(request: unknown): void {
    this.#request(HOST_FRAME.start, 0, request);
  }

  /** As `start`. A number is used again only after all the others: of its last bearer, frames may be under way. */
  exec(process: number, request: unknown): void {
    this.#request(HOST_FRAME.exec, process, request);
  }

  /** Standard input from `offset`; the caller keeps within the guest's limit. */
  async sendStdin(process: number, offset: number, bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length; at += MAX_PAYLOAD - 8) {
      const part = bytes.subarray(at, at + MAX_PAYLOAD - 8);
      this.#order.sent(process, offset + at + part.length);
      this.#send(HOST_FRAME.data, process, Buffer.concat([u64(offset + at), part]));
      if (this.#stream.destroyed || !this.#stream.writableNeedDrain) continue;
      this.#drained ??= Promise.withResolvers<void>();
      await this.#drained.promise;
    }
  }

  sendStdinEof(process: number, offset: number): void {
    this.#send(HOST_FRAME.eof, process, u64(offset));
  }

  /** Output up to `offset` is safe; the guest may send up to `limit`. */
  acknowledge(process: number, fd: OutputFd, offset: number, limit: number): void {
    this.#order.allow(process, fd, limit);
    this.#send(HOST_FRAME.ack, process, u64(offset, limit), fd);
  }

  signal(process: number, signal: number): void {
    const payload = Buffer.allocUnsafe(4);
    payload.writeUInt32LE(signal);
    this.#send(HOST_FRAME.signal, process, payload);
  }

  resize(process: number, rows: number, columns: number): void {
    const payload = Buffer.allocUnsafe(4);
    payload.writeUInt16LE(rows, 0);
    payload.writeUInt16LE(columns, 2);
    this.#send(HOST_FRAME.resize, process, payload);
  }

  forget(process: number): void {
    this.#order.forget(process);
    this.#send(HOST_FRAME.forget, process, Buffer.alloc(0));
  }

  requestStats(): void {
    this.#order.askStats();
    this.#send(HOST_FRAME.stats, 0, Buffer.alloc(0));
  }

  shutdown(): void {
    this.#send(HOST_FRAME.shutdown, 0, Buffer.alloc(0));
  }

  close(): void {
    this.#end(undefined);
  }
}
