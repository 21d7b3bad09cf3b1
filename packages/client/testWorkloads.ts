// For tests: invented processes behind attach and exec, named by the first word of their command.
import type { Allocation, Job } from '@cloister/model/job.ts';
import { CHANNEL, ExecSpecSchema, MAX_STREAM_PAYLOAD_BYTES } from '@cloister/model/stream.ts';
import { Value } from 'typebox/value';
import type { WebSocket } from 'ws';

export interface Running {
  job: Job;
  allocation: Allocation;
}

/** What a process tells the server that it runs on: what a test then asks for. */
interface Host {
  readonly resizes: string[];
  readonly signals: number[];
  pongs: number;
  sentBytes: number;
  update(record: Running, change: Partial<Allocation>): void;
  changed(): void;
  until(check: () => boolean): Promise<void>;
}

interface Process {
  readonly command: readonly string[];
  readonly tty: boolean;
  write(channel: number, data: Buffer): Promise<void>;
  control(message: unknown): void;
  exit(exitCode: number, signal?: number): void;
}

/** What a process does at its start, with its input, at the end of its input, on a signal. */
interface Workload {
  start?(process: Process): Promise<void> | void;
  input?(process: Process, data: Buffer): void;
  inputEnd?(process: Process): void;
  signal?(process: Process, signal: number): void;
}

const bySignal = (process: Process, signal: number) => process.exit(128 + signal, signal);

const WORKLOADS: Record<string, Workload> = {
  echo: {
    start: async (process) => {
      await process.write(CHANNEL.stdout, Buffer.from(`${process.command.slice(1).join(' ')}\n`));
      process.exit(0);
    },
  },
  both: {
    start: async (process) => {
      await process.write(CHANNEL.stdout, Buffer.from([0, 255, 10, 128]));
      await process.write(CHANNEL.stderr, Buffer.from('to stderr\n'));
      process.control({ type: 'gap', bytes: 5 });
      process.exit(0);
    },
  },
  exit: { start: (process) => process.exit(Number(process.command[1])) },
  flood: {
    start: async (process) => {
      for (const chunk of floodChunks(Number(process.command[1]))) await process.write(CHANNEL.stdout, chunk);
      process.exit(0);
    },
  },
  cat: {
    input: (process, data) => void process.write(CHANNEL.stdout, data),
    inputEnd: (process) => process.exit(0),
    signal: bySignal,
  },
  silent: { inputEnd: (process) => process.exit(5) },
  sleep: { start: (process) => void process.write(CHANNEL.stdout, Buffer.from('ready\n')), signal: bySignal },
  stubborn: { start: (process) => void process.write(CHANNEL.stdout, Buffer.from('ready\n')) },
  hex: {
    start: (process) => void process.write(CHANNEL.stdout, Buffer.from('ready\r\n')),
    input: (process, data) => {
      void process.write(CHANNEL.stdout, Buffer.from(`<${data.toString('hex')}>\r\n`));
      if (data.includes(0x71)) process.exit(9);
    },
  },
};

/** The same bytes for the same length, on both sides of a test. */
export function* floodChunks(totalBytes: number): Generator<Buffer, void, undefined> {
  let state = 1;
  for (let sent = 0; sent < totalBytes; ) {
    const chunk = Buffer.alloc(Math.min(MAX_STREAM_PAYLOAD_BYTES, totalBytes - sent));
    for (let i = 0; i < chunk.length; i++) {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      chunk[i] = state >>> 16;
    }
    sent += chunk.length;
    yield chunk;
  }
}

export function serveProcess(
  server: Host,
  ws: WebSocket,
  name: string,
  record: Running,
  query: Record<string, unknown>,
): void {
  let process: Process | undefined;
  let workload: Workload = {};
  const start = (command: readonly string[], tty: boolean) => {
    workload = WORKLOADS[command[0] ?? ''] ?? {};
    process = makeProcess(server, ws, record, name, command, tty);
    if (command[0] !== 'silent') process.control({ type: 'started' }); // a server need not say so
    void workload.start?.(process);
  };
  ws.on('message', (data: Buffer, isBinary) => {
    if (!isBinary) {
      const spec = JSON.parse(data.toString('utf8')) as { command: string[]; tty: boolean };
      if (!Value.Check(ExecSpecSchema, spec)) return ws.close(1008, 'not an ExecSpec');
      return start(spec.command, spec.tty);
    }
    if (!process) return;
    if (data[0] === CHANNEL.stdin) {
      if (name === 'attach' && query['stdin'] !== true) return ws.close(1008, 'stdin was not asked for');
      return workload.input?.(process, data.subarray(1));
    }
    const message = JSON.parse(data.subarray(1).toString('utf8')) as {
      type: string;
      signal: number;
      rows: number;
      columns: number;
    };
    if (message.type === 'stdin-eof') workload.inputEnd?.(process);
    if (message.type === 'resize') server.resizes.push(`${message.rows}x${message.columns}`);
    if (message.type === 'signal') {
      server.signals.push(message.signal);
      workload.signal?.(process, message.signal);
    }
    server.changed();
  });
  ws.on('pong', () => {
    server.pongs++;
    server.changed();
  });
  if (name === 'attach') void attach(server, ws, record, start);
}

async function attach(
  server: Host,
  ws: WebSocket,
  record: Running,
  start: (command: readonly string[], tty: boolean) => void,
): Promise<void> {
  await server.until(
    () => ws.readyState !== ws.OPEN || ['running', 'failed', 'exited'].includes(record.allocation.state),
  );
  const { state, reason } = record.allocation;
  if (state === 'running') start(record.job.spec.command ?? [], record.job.spec.tty);
  else
    ws.send(
      frame(
        CHANNEL.control,
        Buffer.from(
          JSON.stringify({
            type: 'error',
            reason: reason ?? { code: 'state.wrong', message: 'It was killed.' },
          }),
        ),
      ),
    );
  await server.until(() => ws.readyState !== ws.OPEN || record.allocation.state === 'exited');
  if (ws.readyState === ws.OPEN)
    ws.send(
      frame(
        CHANNEL.control,
        Buffer.from(JSON.stringify({ type: 'exit', exitCode: record.allocation.exitCode ?? 0 })),
      ),
    );
}

function makeProcess(
  server: Host,
  ws: WebSocket,
  record: Running,
  name: string,
  command: readonly string[],
  tty: boolean,
): Process {
  const send = async (channel: number, data: Buffer) => {
    await new Promise<void>((resolve) => ws.send(frame(channel, data), () => resolve()));
    server.sentBytes += data.length;
  };
  return {
    command,
    tty,
    write: send,
    control: (message) => void send(CHANNEL.control, Buffer.from(JSON.stringify(message))),
    exit: (exitCode, signal) => {
      void send(
        CHANNEL.control,
        Buffer.from(JSON.stringify({ type: 'exit', exitCode, ...(signal === undefined ? {} : { signal }) })),
      );
      if (name === 'attach')
        server.update(record, { state: 'exited', exitCode, ...(signal === undefined ? {} : { signal }) });
    },
  };
}

function frame(channel: number, payload: Buffer): Buffer {
  return Buffer.concat([Buffer.of(channel), payload]);
}
