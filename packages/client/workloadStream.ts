// The standard streams of a process in a sandbox, over one WebSocket: attach and exec.
//
// Nothing is buffered without bound in either direction. While a consumer of output is slow, the socket is not read,
// TCP fills, and the workload itself waits in its write. While the sandbox does not read its input, a write to
// `stdin` does not call back.
import { Readable, Writable } from 'node:stream';
import type { CHANNEL, MAX_STREAM_PAYLOAD_BYTES as Payload, StreamControl } from '@cloister/model/stream.ts';
import type { WebSocket } from 'ws';
import { ApiError, reasonToError } from './apiError.ts';

/** How the process ended. `exitCode` is 128 + N when signal N ended it. */
export interface Exit {
  readonly exitCode: number;
  readonly signal?: number;
  readonly oomKilled?: boolean;
}

// Held equal to the model by type; importing the values would load its schemas.
const STDIN: (typeof CHANNEL)['stdin'] = 0;
const STDOUT: (typeof CHANNEL)['stdout'] = 1;
const STDERR: (typeof CHANNEL)['stderr'] = 2;
const CONTROL: (typeof CHANNEL)['control'] = 3;
const MAX_PAYLOAD_BYTES: typeof Payload = 65_536;

const BUFFER_BYTES = 256 * 1024;
const PULSE_MS = 10_000;
const SILENT_LIMIT_MS = 60_000;

export class WorkloadStream {
  /**
   * The process's output, byte for byte, each ended when the process has. Both must be consumed: one that is not
   * holds up the other (use `resume()` to throw one away). With a terminal everything is on `stdout`.
   */
  readonly stdout: Readable;
  readonly stderr: Readable;
  /** The process's input. `end()` closes it there. A write calls back when the network has taken it. */
  readonly stdin: Writable;
  /** Resolves when the server says that the process runs, or with its first output; rejects when it never will. */
  readonly started: Promise<void>;
  /** Resolves when the process ended and its output has arrived; rejects with an ApiError when that will not be known. */
  readonly exit: Promise<Exit>;
  /** Called when output was lost because nobody read it in time: how many bytes. */
  onGap: (bytes: number) => void = () => {};

  readonly #socket: WebSocket;
  readonly #what: string;
  readonly #started = Promise.withResolvers<void>();
  readonly #exit = Promise.withResolvers<Exit>();
  readonly #full = new Set<number>();
  #isOver = false;
  #lastHeardMs = performance.now();
  readonly #pulse: NodeJS.Timeout;

  /** For CloisterClient: `socket` is open, and nothing has been read from it. */
  constructor(socket: WebSocket, what: string, signal?: AbortSignal) {
    this.#socket = socket;
    this.#what = what;
    this.started = this.#started.promise;
    this.exit = this.#exit.promise;
    // Who waits for one of the two need not wait for the other.
    this.started.catch(() => {});
    this.exit.catch(() => {});
    this.stdout = this.#outputOf(STDOUT);
    this.stderr = this.#outputOf(STDERR);
    this.stdin = this.#input();
    socket.on('message', (data: Buffer, isBinary) => this.#receive(data, isBinary));
    socket.on('pong', () => this.#heard());
    socket.on('ping', () => this.#heard());
    socket.on('error', (cause) =>
      this.#fail(new ApiError('unavailable', `${what}: the connection broke`, { cause })),
    );
    socket.on('close', (code, reason) => this.#closed(code, reason.toString('utf8')));
    this.#pulse = setInterval(() => this.#checkPulse(), PULSE_MS);
    const abort = () => this.#fail(signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort, { once: true });
    void this.exit.catch(() => {}).finally(() => signal?.removeEventListener('abort', abort));
  }

  /** Tells the process's terminal its size, each 1 to 65,535. Ignored without a terminal. */
  resize(rows: number, columns: number): void {
    if (rows >= 1 && columns >= 1)
      this.#control({ type: 'resize', rows: Math.min(rows, 65_535), columns: Math.min(columns, 65_535) });
  }

  /** Sends signal 1 to 64, by Linux's numbers, to the process. */
  signal(signal: number): void {
    this.#control({ type: 'signal', signal });
  }

  /** Leaves. The process goes on. `exit` rejects unless it was known already. */
  close(): void {
    this.#fail(new ApiError('unavailable', `${this.#what}: closed by us.`));
  }

  #outputOf(channel: number): Readable {
    return new Readable({
      highWaterMark: BUFFER_BYTES,
      read: () => {
        this.#full.delete(channel);
        if (this.#full.size === 0 && this.#socket.isPaused) {
          this.#heard(); // silence while we did not listen proves nothing
          this.#socket.resume();
        }
      },
    });
  }

  #input(): Writable {
    return new Writable({
      highWaterMark: BUFFER_BYTES,
      write: (chunk: Buffer, _encoding, done) => {
        if (this.#isOver) {
          done(); // as a pipe to a process that ended would lose it; `exit` tells the reason
          return;
        }
        let last = 0;
        for (; chunk.length - last > MAX_PAYLOAD_BYTES; last += MAX_PAYLOAD_BYTES) {
          this.#socket.send(frame(STDIN, chunk.subarray(last, last + MAX_PAYLOAD_BYTES)), () => {});
        }
        this.#socket.send(frame(STDIN, chunk.subarray(last)), () => done());
      },
      final: (done) => {
        this.#control({ type: 'stdin-eof' });
        done();
      },
    });
  }

  #receive(data: Buffer, isBinary: boolean): void {
    this.#heard();
    const channel = isBinary ? data[0] : undefined;
    if (channel === CONTROL) this.#receiveControl(data.subarray(1));
    else if (channel === STDOUT) this.#receiveOutput(channel, this.stdout, data.subarray(1));
    else if (channel === STDERR) this.#receiveOutput(channel, this.stderr, data.subarray(1));
    else this.#fail(this.#protocolError('a message that is not of the protocol'));
  }

  #receiveOutput(channel: number, output: Readable, data: Buffer): void {
    this.#started.resolve();
    if (data.length === 0 || this.#isOver || output.push(data)) return;
    this.#full.add(channel);
    this.#socket.pause();
  }

  #receiveControl(payload: Buffer): void {
    const message = parseControl(payload);
    if (!message) this.#fail(this.#protocolError('a control message that is not JSON'));
    else if (message.type === 'started') this.#started.resolve();
    else if (message.type === 'gap') this.onGap(message.bytes);
    else if (message.type === 'error') this.#fail(reasonToError(message.reason));
    else if (message.type === 'exit') {
      this.#started.resolve();
      const { exitCode, signal, oomKilled } = message;
      this.#exit.resolve({
        exitCode,
        ...(signal === undefined ? {} : { signal }),
        ...(oomKilled === undefined ? {} : { oomKilled }),
      });
      this.#end();
    }
  }

  #closed(code: number, reason: string): void {
    const words = reason === '' ? `code ${code}` : `${reason.slice(0, 200)} (code ${code})`;
    this.#fail(
      new ApiError('unavailable', `${this.#what}: the connection ended before the process did: ${words}.`),
    );
  }

  #fail(error: unknown): void {
    this.#started.reject(error);
    this.#exit.reject(error);
    this.#end();
  }

  /** The output that arrived can still be read to its end. */
  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearInterval(this.#pulse);
    this.stdout.push(null);
    this.stderr.push(null);
    this.#socket.resume(); // a paused socket never sees the other side's close
    this.#socket.close(1000);
  }

  #control(message: StreamControl): void {
    if (!this.#isOver) this.#socket.send(frame(CONTROL, Buffer.from(JSON.stringify(message))), () => {});
  }

  #protocolError(what: string): ApiError {
    return new ApiError('internal', `${this.#what}: the server sent ${what}.`);
  }

  #heard(): void {
    this.#lastHeardMs = performance.now();
  }

  #checkPulse(): void {
    if (this.#socket.isPaused) {
      // We do not read, so we do not answer the server's pings either. An unasked pong says that we are still here.
      this.#socket.pong(undefined, undefined, () => {});
    } else if (performance.now() - this.#lastHeardMs > SILENT_LIMIT_MS) {
      this.#fail(
        new ApiError(
          'unavailable',
          `${this.#what}: nothing was heard from the server for ${SILENT_LIMIT_MS / 1000} s.`,
        ),
      );
      this.#socket.terminate();
    } else {
      this.#socket.ping(undefined, undefined, () => {});
    }
  }
}

function parseControl(payload: Buffer): StreamControl | undefined {
  try {
    return JSON.parse(payload.toString('utf8')) as StreamControl;
  } catch {
    return undefined;
  }
}

function frame(channel: number, payload: Buffer): Buffer {
  const bytes = Buffer.allocUnsafe(payload.length + 1);
  bytes[0] = channel;
  payload.copy(bytes, 1);
  return bytes;
}
