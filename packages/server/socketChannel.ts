// A client's WebSocket as the frames of model/stream.ts, with back-pressure both ways: sending waits while the client
// does not read, and what it sends is left in the kernel's buffers until somebody takes it.

import { CloisterError, type ErrorCode } from '@cloister/model/errors.ts';
import { CHANNEL, MAX_STREAM_PAYLOAD_BYTES, type StreamControl } from '@cloister/model/stream.ts';
import type { WebSocket } from '@fastify/websocket';

/** Bytes that may wait in memory for a client that reads slowly. */
const MAX_BUFFERED_BYTES = 262_144;
const PING_INTERVAL_MS = 20_000;
const CLOSE_TIMEOUT_MS = 5_000;

export type ClientMessage =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'frame'; readonly channel: number; readonly payload: Buffer };

export class SocketChannel implements AsyncIterable<ClientMessage> {
  /** Aborted when the client is gone. */
  readonly signal: AbortSignal;
  readonly #socket: WebSocket;
  readonly #gone = new AbortController();
  readonly #received: ClientMessage[] = [];
  #wake: () => void = () => {};

  constructor(socket: WebSocket) {
    this.#socket = socket;
    this.signal = this.#gone.signal;
    let answered = true;
    const pinging = setInterval(() => {
      if (!answered && !socket.isPaused) socket.terminate();
      answered = false;
      socket.ping();
    }, PING_INTERVAL_MS);
    socket.on('pong', () => {
      answered = true;
    });
    socket.on('message', (data, isBinary) => {
      socket.pause();
      const bytes = Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data as Buffer);
      if (!isBinary) this.#received.push({ kind: 'text', text: bytes.toString('utf8') });
      else this.#received.push({ kind: 'frame', channel: bytes[0] ?? -1, payload: bytes.subarray(1) });
      this.#wake();
    });
    socket.on('error', () => socket.terminate());
    socket.on('close', () => {
      clearInterval(pinging);
      this.#gone.abort(new CloisterError('unavailable', 'The client went away.'));
      this.#wake();
    });
  }

  /** Ends when the client is gone. One reader at a time. */
  async *[Symbol.asyncIterator](): AsyncGenerator<ClientMessage> {
    while (!this.signal.aborted) {
      const message = this.#received.shift();
      if (message) {
        yield message;
      } else {
        if (this.#socket.isPaused) this.#socket.resume();
        await new Promise<void>((resolve) => (this.#wake = resolve));
      }
    }
  }

  /** Throws when the client is gone. Larger payloads go as several frames. */
  async send(channel: number, payload: Buffer): Promise<void> {
    for (let start = 0; start < payload.length; start += MAX_STREAM_PAYLOAD_BYTES) {
      const part = payload.subarray(start, start + MAX_STREAM_PAYLOAD_BYTES);
      await this.#send(Buffer.concat([Buffer.from([channel]), part]));
    }
  }

  async control(control: StreamControl): Promise<void> {
    await this.#send(Buffer.concat([Buffer.from([CHANNEL.control]), Buffer.from(JSON.stringify(control))]));
  }

  /** The last word of a stream that could not go on. Never throws. */
  async fail(code: ErrorCode | string, message: string): Promise<void> {
    await this.control({ type: 'error', reason: { code, message } }).catch(() => {});
  }

  /** Says goodbye after what was sent, and does not wait for ever for the answer. */
  finish(code = 1000): void {
    if (this.signal.aborted) return;
    if (this.#socket.isPaused) this.#socket.resume(); // the answer is read, too
    this.#socket.close(code);
    const timer = setTimeout(() => this.#socket.terminate(), CLOSE_TIMEOUT_MS);
    this.signal.addEventListener('abort', () => clearTimeout(timer));
  }

  async #send(frame: Buffer): Promise<void> {
    this.signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#socket.send(frame, (error) => (error ? reject(error) : resolve()));
    if (this.#socket.bufferedAmount < MAX_BUFFERED_BYTES) {
      promise.catch(() => {}); // the socket's close tells
      return;
    }
    const gone = Promise.withResolvers<never>();
    const abort = (): void => gone.reject(this.signal.reason);
    this.signal.addEventListener('abort', abort);
    try {
      await Promise.race([promise, gone.promise]);
    } finally {
      this.signal.removeEventListener('abort', abort);
    }
  }
}
