// A process in a sandbox as if it ran here: its output to ours, our input to its, our terminal and signals its own.
import type { Exit, WorkloadStream } from '@cloister/client/workloadStream.ts';
import { type Context, terminalSize } from './context.ts';
import { createInsistence, type SignalGate } from './signals.ts';

export interface ForegroundOptions {
  /** Our standard input is its input. */
  readonly input: boolean;
  /** It has a terminal: ours, in raw mode, when our input is one. */
  readonly tty: boolean;
  /** Called at the third interrupt within two seconds. */
  onInsist(): void;
}

const SIGINT = 2;

/**
 * Until the process ended and all of its output is written. Throws BrokenPipe when our
 * reader went away, and what `workload.exit` throws. The terminal is as it was when this returns or throws.
 */
export async function runForeground(
  context: Context,
  workload: WorkloadStream,
  gate: SignalGate,
  options: ForegroundOptions,
): Promise<Exit> {
  const isInsisting = createInsistence();
  gate.handler = (signal) => {
    workload.signal(signal);
    if (signal === SIGINT && isInsisting()) options.onInsist();
  };
  workload.onGap = (bytes) =>
    void context.err.write(`cloister: ${bytes} bytes of output were lost before they could be sent\n`);
  const restore = options.tty ? takeTerminal(context, workload, options.input) : () => {};
  if (options.input) sendInput(workload);
  try {
    const output = Promise.all([pump(context, workload, 'stdout'), pump(context, workload, 'stderr')]);
    const [exit] = await Promise.all([workload.exit, output]);
    return exit;
  } finally {
    restore();
  }
}

async function pump(context: Context, workload: WorkloadStream, stream: 'stdout' | 'stderr'): Promise<void> {
  const output = stream === 'stdout' ? context.out : context.err;
  for await (const chunk of workload[stream] as AsyncIterable<Buffer>) {
    if (context.json) await context.item({ type: 'output', stream, data: chunk.toString('base64') });
    else await output.write(chunk);
  }
}

function sendInput(workload: WorkloadStream): void {
  process.stdin.on('error', () => workload.stdin.end()); // a terminal that is gone gives no more input
  workload.stdin.on('error', () => {}); // `exit` tells what happened to the connection
  process.stdin.pipe(workload.stdin);
}

/**
 * The terminal's size, now and whenever it changes; and when its input is ours to send, raw mode, so that every key
 * is the workload's. (Without input, Ctrl-C must stay a signal.) Returns the way back.
 */
function takeTerminal(context: Context, workload: WorkloadStream, input: boolean): () => void {
  const resize = () => {
    const { rows, columns } = terminalSize();
    workload.resize(rows, columns);
  };
  const hasSize = context.outIsTerminal || context.errIsTerminal;
  if (hasSize) {
    resize();
    process.on('SIGWINCH', resize);
  }
  const isRaw = input && context.inIsTerminal;
  if (isRaw) process.stdin.setRawMode(true);
  return () => {
    process.off('SIGWINCH', resize);
    if (isRaw) process.stdin.setRawMode(false);
  };
}
