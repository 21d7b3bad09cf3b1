// What a guest may say, given what was said before: the order of its streams, and how much of each it was allowed. What
// is whole but out of order is a breach of the protocol (docs/guest-channel.md) and throws GuestProtocolError; what
// concerns a process that the host has forgotten was under way and is passed over.
import {
  type GuestMessage,
  type GuestProcess,
  GuestProtocolError,
  OUTPUT_WINDOW_BYTES,
  type OutputFd,
  type ResumedProcess,
  STDIN_WINDOW_BYTES,
} from './frames.ts';

interface Output {
  next: number;
  limit: number;
  ended: boolean;
}

interface Known {
  readonly outputs: Record<OutputFd, Output>;
  readonly stdin: { sent: number; received: number; limit: number };
  started: boolean;
  over: boolean;
}

const outputFrom = (offset: number, limit = offset + OUTPUT_WINDOW_BYTES): Output => ({
  next: offset,
  limit,
  ended: false,
});

const knownFrom = (stdout: Output, stderr: Output): Known => ({
  outputs: { 1: stdout, 2: stderr },
  stdin: { sent: 0, received: 0, limit: 0 },
  started: false,
  over: false,
});

export class GuestOrder {
  /** Bounded by what the host itself began. */
  readonly #known = new Map<number, Known>();
  readonly #resumed: ReadonlyMap<number, ResumedProcess>;
  #greeted = false;
  #statsAsked = 0;

  constructor(resumed: readonly ResumedProcess[]) {
    this.#resumed = new Map(resumed.map((entry) => [entry.process, entry]));
  }

  /** The host said START or EXEC. */
  begin(process: number): void {
    this.#known.set(process, knownFrom(outputFrom(0), outputFrom(0)));
  }

  /** The host said FORGET. */
  forget(process: number): void {
    this.#known.delete(process);
  }

  sent(process: number, offset: number): void {
    const stdin = this.#known.get(process)?.stdin;
    if (stdin) stdin.sent = Math.max(stdin.sent, offset);
  }

  allow(process: number, fd: OutputFd, limit: number): void {
    const output = this.#known.get(process)?.outputs[fd];
    if (output) output.limit = Math.max(output.limit, limit);
  }

  askStats(): void {
    this.#statsAsked += 1;
  }

  /** False for what is to be passed over. */
  admit(message: GuestMessage): boolean {
    if (message.type === 'hello') {
      if (this.#greeted) throw new GuestProtocolError('HELLO again');
      this.#greeted = true;
      for (const process of message.processes) this.#meet(process);
      return true;
    }
    if (message.type === 'stats') {
      // Several questions may get one answer, but no answer comes without a question.
      if (this.#statsAsked === 0) throw new GuestProtocolError('STATS that nobody asked for');
      this.#statsAsked -= 1;
      return true;
    }
    const known = this.#known.get(message.process);
    if (!known) return false;
    switch (message.type) {
      case 'started':
        if (known.started) return false;
        known.started = true;
        return true;
      case 'data':
        return takeData(known.outputs[message.fd], message.offset, message.bytes.length);
      case 'eof':
        return takeEof(known.outputs[message.fd], message.offset);
      case 'ack':
        return takeAck(known.stdin, message.offset, message.limit);
      case 'failed':
      case 'exit':
        if (known.over) throw new GuestProtocolError('a second end of one process');
        if (message.type === 'exit' && !(known.outputs[1].ended && known.outputs[2].ended))
          throw new GuestProtocolError('EXIT before the end of the output');
        known.over = true;
        return true;
    }
  }

  #meet(process: GuestProcess): void {
    const resumed = this.#resumed.get(process.process);
    if (!resumed && process.process !== 0) return; // an exec that the guest has just been told to forget
    const { stdoutBase, stderrBase, stdinConsumed, stdinLimit } = process;
    if (resumed && (resumed.stdoutAck !== stdoutBase || resumed.stderrAck !== stderrBase))
      throw new GuestProtocolError('output that is neither on the host nor in the guest');
    const known = knownFrom(
      outputFrom(stdoutBase, resumed?.stdoutLimit),
      outputFrom(stderrBase, resumed?.stderrLimit),
    );
    known.started = process.state === 'running' || process.state === 'ended';
    known.stdin.sent = stdinConsumed;
    takeAck(known.stdin, stdinConsumed, stdinLimit);
    this.#known.set(process.process, known);
  }
}

function takeData(output: Output, offset: number, bytes: number): true {
  if (output.ended) throw new GuestProtocolError('output behind its end');
  if (offset !== output.next)
    throw new GuestProtocolError(`output at ${offset} where ${output.next} is next`);
  if (offset + bytes > output.limit) throw new GuestProtocolError(`output beyond its limit ${output.limit}`);
  output.next += bytes;
  return true;
}

function takeEof(output: Output, offset: number): true {
  if (output.ended) throw new GuestProtocolError('a second end of output');
  if (offset !== output.next) throw new GuestProtocolError(`output ends at ${offset}, not at ${output.next}`);
  output.ended = true;
  return true;
}

function takeAck(stdin: Known['stdin'], offset: number, limit: number): true {
  if (offset < stdin.received || limit < stdin.limit) throw new GuestProtocolError('an ACK that goes back');
  if (offset > stdin.sent) throw new GuestProtocolError('an ACK of what was never sent');
  if (limit > offset + STDIN_WINDOW_BYTES) throw new GuestProtocolError('an ACK with too high a limit');
  stdin.received = offset;
  stdin.limit = limit;
  return true;
}
