// The host's end of the guest channel: one connection after another to the same guest, resumed without loss. It knows
// frames, windows and offsets; what output means, and where it goes, is its listener's business (see sandbox.ts).
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { CloisterError } from '@cloister/model/errors.ts';
import {
  encodeFrame,
  encodeResume,
  type GuestMessage,
  GuestParser,
  GuestProtocolError,
  HOST_FRAME,
  MAX_PAYLOAD,
  NONCE_BYTES,
  type ResumedProcess,
  u64,
} from './frames.ts';

/** RESUME is said again this often until HELLO comes: the guest may still be booting, or have lost the first one. */
const RESUME_EVERY_MS = 500;
/** Bytes that may wait for the guest to read before the channel is given up: the guest does not read at all. */
const MAX_UNSENT_BYTES = 4 * 1_048_576;

export interface ChannelListener {
  /** The output offsets that are safe, asked for at each resume. */
  resumedProcesses(): readonly ResumedProcess[];
  /** Called in order. A throw ends the channel as a protocol error does. */
  message(message: GuestMessage): void;
}

export class GuestChannel {
  readonly #stream: Duplex;
  readonly #listener: ChannelListener;
  readonly #nonce = randomBytes(NONCE_BYTES);
  readonly #parser = new GuestParser(this.#nonce);
  readonly #closed = Promise.withResolvers<Error | undefined>();
  readonly #ready = Promise.withResolvers<void>();

  /** Takes the connection over. `ready` says when the guest has answered. */
  constructor(stream: Duplex, listener: ChannelListener) {
    this.#stream = stream;
    this.#listener = listener;
    this.#ready.promise.catch(() => {}); // whoever does not wait for it learns of the end from `closed`
    stream.on('data', (chunk: Buffer) => this.#receive(chunk));
    stream.once('error', (error) => this.#end(error));
    stream.once('close', () => this.#end(undefined));
    stream.once('end', () => this.#end(undefined));
    void this.#resume();
  }

  /** Resolves when the guest answered HELLO; rejects when the channel ends before. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** Resolves once, with the error that ended the channel, or undefined when the other side closed it. */
  get closed(): Promise<Error | undefined> {
    return this.#closed.promise;
  }

  async #resume(): Promise<void> {
    while (!this.#parser.synchronized && !this.#stream.destroyed) {
      // Not over and over into a pipe that nobody reads yet: the first one waits there for the guest.
      if (this.#stream.writableLength === 0)
        this.#stream.write(encodeResume(this.#nonce, this.#listener.resumedProcesses()));
      await Promise.race([
        new Promise((resolve) => setTimeout(resolve, RESUME_EVERY_MS).unref()),
        this.#ready.promise.catch(() => {}),
        this.#closed.promise,
      ]);
    }
  }

  #receive(chunk: Buffer): void {
    try {
      for (const message of this.#parser.push(chunk)) {
        this.#listener.message(message);
        if (message.type === 'hello') this.#ready.resolve();
      }
    } catch (error) {
      this.#end(error instanceof Error ? error : new Error(String(error)));
    }
  }

  #end(error: Error | undefined): void {
    this.#stream.destroy();
    this.#ready.reject(
      error ?? new CloisterError('sandbox.vmm-died', 'The channel to the guest was closed.'),
    );
    this.#closed.resolve(error);
  }

  #send(type: number, process: number, payload: Buffer, fd = 0): void {
    if (this.#stream.destroyed) return; // what must not be lost is said again after the next resume
    this.#stream.write(encodeFrame(type, process, fd, payload));
    if (this.#stream.writableLength > MAX_UNSENT_BYTES)
      this.#end(new GuestProtocolError('it does not read what is sent to it'));
  }

  #sendJson(type: number, process: number, value: unknown): void {
    const payload = Buffer.from(JSON.stringify(value));
    if (payload.length > MAX_PAYLOAD) {
      throw new CloisterError(
        'sandbox.start-failed',
        `The command line and environment take ${payload.length} bytes; the guest takes ${MAX_PAYLOAD}.`,
      );
    }
    this.#send(type, process, payload);
  }

  start(request: unknown): void {
    this.#sendJson(HOST_FRAME.start, 0, request);
  }

  exec(process: number, request: unknown): void {
    this.#sendJson(HOST_FRAME.exec, process, request);
  }

  /** Standard input from `offset`; the caller keeps within the guest's limit. */
  async sendStdin(process: number, offset: number, bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length; at += MAX_PAYLOAD - 8) {
      const part = bytes.subarray(at, at + MAX_PAYLOAD - 8);
      this.#send(HOST_FRAME.data, process, Buffer.concat([u64(offset + at), part]));
      if (this.#stream.writableNeedDrain)
        await Promise.race([once(this.#stream, 'drain'), this.#closed.promise]);
    }
  }

  sendStdinEof(process: number, offset: number): void {
    this.#send(HOST_FRAME.eof, process, u64(offset));
  }

  /** Output up to `offset` is safe; the guest may send up to `limit`. */
  acknowledge(process: number, fd: number, offset: number, limit: number): void {
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
    this.#send(HOST_FRAME.forget, process, Buffer.alloc(0));
  }

  requestStats(): void {
    this.#send(HOST_FRAME.stats, 0, Buffer.alloc(0));
  }

  shutdown(): void {
    this.#send(HOST_FRAME.shutdown, 0, Buffer.alloc(0));
  }

  close(): void {
    this.#end(undefined);
  }
}
