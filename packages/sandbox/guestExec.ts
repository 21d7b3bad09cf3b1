// One exec in a guest, as the host sees it: its output handed on and only then acknowledged, its end told once.
import { CloisterError, describeError, type ErrorCode } from '@cloister/model/errors.ts';
import type { Reason } from '@cloister/model/schema.ts';
import type { GuestChannel } from './channel.ts';
import {
  type GuestMessage,
  GuestProtocolError,
  MAX_PROCESSES,
  OUTPUT_WINDOW_BYTES,
  type OutputFd,
} from './frames.ts';
import type { Exec, ExecEnd, ExecOutput } from './sandbox.ts';
import { StdinPipe } from './stdinPipe.ts';

const SIGKILL = 9;
const LAST_PROCESS = 65_535;

/** What FAILED says, as an error of ours. */
export function failureOf(code: number, text: string): Reason {
  const codes: Record<number, ErrorCode> = {
    124: 'sandbox.user-not-found',
    126: 'sandbox.command-not-executable',
    127: 'sandbox.command-not-found',
  };
  return {
    code: codes[code] ?? 'sandbox.start-failed',
    message: `The command could not be started: ${text || 'the guest does not say why'}.`,
  };
}

interface Stream {
  received: number;
  taken: number;
  ended: boolean;
}

export class GuestExec implements Exec {
  readonly #process: number;
  readonly #channel: GuestChannel;
  readonly #output: ExecOutput;
  readonly #onOver: () => void;
  readonly #stdin: StdinPipe;
  readonly #streams: Record<OutputFd, Stream> = {
    1: { received: 0, taken: 0, ended: false },
    2: { received: 0, taken: 0, ended: false },
  };
  readonly #started = Promise.withResolvers<void>();
  readonly #ended = Promise.withResolvers<ExecEnd>();
  /** Output is handed on in the order in which it came, both streams together. */
  #handing: Promise<void> = Promise.resolve();
  #over = false;

  /** `onOver`: called once, when no more messages are wanted. */
  constructor(process: number, channel: GuestChannel, output: ExecOutput, onOver: () => void) {
    this.#process = process;
    this.#channel = channel;
    this.#output = output;
    this.#onOver = onOver;
    this.#stdin = new StdinPipe({
      send: (offset, bytes) => channel.sendStdin(process, offset, bytes),
      sendEof: (offset) => channel.sendStdinEof(process, offset),
    });
  }

  get started(): Promise<void> {
    return this.#started.promise;
  }

  get ended(): Promise<ExecEnd> {
    return this.#ended.promise;
  }

  async writeStdin(bytes: Buffer): Promise<void> {
    await this.#stdin.write(bytes);
  }

  endStdin(): void {
    this.#stdin.end();
  }

  signal(signal: number): void {
    if (!this.#over) this.#channel.signal(this.#process, signal);
  }

  resize(rows: number, columns: number): void {
    if (!this.#over) this.#channel.resize(this.#process, rows, columns);
  }

  close(): void {
    this.end({ kind: 'exit', exitCode: 128 + SIGKILL, signal: SIGKILL, oomKilled: false });
  }

  /** The guest's word on this exec. Throws GuestProtocolError when it is none. */
  take(message: GuestMessage): void {
    switch (message.type) {
      case 'started':
        this.#started.resolve();
        return;
      case 'ack':
        this.#stdin.allow(message.limit);
        return;
      case 'data':
        this.#takeOutput(message.fd, message.offset, message.bytes);
        return;
      case 'eof':
        this.#streams[message.fd].ended = true;
        return;
      case 'failed':
        this.#afterOutput({ kind: 'error', reason: failureOf(message.code, message.text) });
        return;
      case 'exit': {
        const { exitCode, signal, oomKilled } = message;
        this.#afterOutput({
          kind: 'exit',
          exitCode,
          ...(signal === undefined ? {} : { signal }),
          oomKilled,
        });
        return;
      }
      default:
    }
  }

  #takeOutput(fd: OutputFd, offset: number, bytes: Buffer): void {
    const stream = this.#streams[fd];
    if (offset !== stream.received) throw new GuestProtocolError(`exec output at ${offset}`);
    if (offset + bytes.length > stream.taken + OUTPUT_WINDOW_BYTES || stream.ended)
      throw new GuestProtocolError('exec output beyond its limit');
    stream.received += bytes.length;
    const copy = Buffer.from(bytes); // the parser's memory is used again
    this.#handing = this.#handing.then(async () => {
      if (this.#over) return;
      await this.#output(fd, copy);
      stream.taken += copy.length;
      this.#channel.acknowledge(this.#process, fd, stream.taken, stream.taken + OUTPUT_WINDOW_BYTES);
    });
    this.#handing.catch((error: unknown) => this.#outputRefused(error));
  }

  #outputRefused(error: unknown): void {
    const message = `Nobody takes its output any more: ${describeError(error)}`;
    this.end({ kind: 'error', reason: { code: 'state.wrong', message } });
  }

  #afterOutput(end: ExecEnd): void {
    this.#handing = this.#handing.then(() => this.end(end));
    this.#handing.catch(() => {}); // outputRefused() has ended it
  }

  /** Ends it in the guest too, if it has not ended there. The first end counts. */
  end(end: ExecEnd): void {
    if (this.#over) return;
    this.#over = true;
    this.#channel.forget(this.#process); // kills it when it runs
    this.#stdin.close();
    this.#started.resolve();
    this.#ended.resolve(end);
    this.#onOver();
  }
}

/** The execs of one sandbox, by the numbers that the guest knows them by. */
export class GuestExecs {
  readonly #running = new Map<number, GuestExec>();
  #next = 1;

  /** Throws `limit.exceeded`, or what the channel says of a request that it cannot send. */
  start(channel: GuestChannel, request: object, output: ExecOutput): Exec {
    const process = this.#next;
    if (this.#running.size >= MAX_PROCESSES || this.#running.has(process))
      throw new CloisterError('limit.exceeded', `${MAX_PROCESSES} commands run in this sandbox already.`);
    this.#next = process === LAST_PROCESS ? 1 : process + 1;
    const exec = new GuestExec(process, channel, output, () => this.#running.delete(process));
    this.#running.set(process, exec);
    try {
      channel.exec(process, request);
    } catch (error) {
      exec.close();
      throw error;
    }
    return exec;
  }

  /** What belongs to none that runs is of one that was just ended: it means nothing any more. */
  take(message: Exclude<GuestMessage, { type: 'hello' | 'stats' }>): void {
    this.#running.get(message.process)?.take(message);
  }

  endAll(): void {
    for (const exec of [...this.#running.values()]) exec.close();
  }
}
