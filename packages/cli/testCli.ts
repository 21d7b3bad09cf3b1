// For tests: the command as a real process, against the client's test server.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { TestServer } from '@cloister/client/testServer.ts';

export interface Result {
  readonly code: number | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}

const LIMIT_MS = 30_000;
export const MAIN = join(import.meta.dirname, 'main.ts');

export class TestCli {
  readonly server: TestServer;
  readonly folder: string;
  readonly env: Record<string, string>;
  readonly #children = new Set<ChildProcess>();

  private constructor(server: TestServer, folder: string) {
    this.server = server;
    this.folder = folder;
    this.env = {
      PATH: process.env.PATH ?? '',
      HOME: folder,
      TERM: 'xterm',
      CLOISTER_CONFIG: join(folder, 'config.json'),
      NODE_COMPILE_CACHE: join(folder, 'cache'),
    };
  }

  static async start(): Promise<TestCli> {
    const server = await TestServer.start();
    const folder = await mkdtemp(join(tmpdir(), 'cloister-cli-'));
    await writeFile(join(folder, 'ca.pem'), server.caPem);
    await writeFile(
      join(folder, 'config.json'),
      JSON.stringify({ url: server.url, caFile: 'ca.pem', token: server.token }),
      { mode: 0o600 },
    );
    return new TestCli(server, folder);
  }

  async close(): Promise<void> {
    for (const child of this.#children) child.kill('SIGKILL');
    await this.server.close();
    await rm(this.folder, { recursive: true });
  }

  /** Starts it with pipes; under `script`, a terminal is between. */
  spawn(
    args: readonly string[],
    options: { terminal?: boolean; env?: Record<string, string> } = {},
  ): ChildProcess & Started {
    const words = [process.execPath, MAIN, ...args];
    const quoted = words.map((word) => `'${word}'`).join(' ');
    const [command = '', ...rest] = options.terminal
      ? ['script', '-qec', `stty rows 30 cols 100; ${quoted}; code=$?; stty -a; exit $code`, '/dev/null']
      : words;
    const child = spawn(command, rest, {
      env: { ...this.env, ...options.env },
      stdio: 'pipe',
      timeout: LIMIT_MS,
      killSignal: 'SIGKILL',
    });
    this.#children.add(child);
    child.once('close', () => this.#children.delete(child));
    child.stdin.on('error', () => {});
    return child as ChildProcess & Started;
  }

  /** Runs it to its end. */
  async run(
    args: readonly string[],
    options: { input?: string | Buffer; env?: Record<string, string> } = {},
  ): Promise<Result> {
    const child = this.spawn(args, options);
    child.stdin.end(options.input);
    return await finish(child);
  }
}

interface Started {
  readonly stdin: NonNullable<ChildProcess['stdin']>;
  readonly stdout: NonNullable<ChildProcess['stdout']>;
  readonly stderr: NonNullable<ChildProcess['stderr']>;
}

export async function finish(child: ChildProcess & Started): Promise<Result> {
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { code, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr).toString() };
}

/** Resolves when the stream has said this; what it said until then. */
export async function untilSaid(stream: NodeJS.ReadableStream, text: string): Promise<string> {
  let said = '';
  return await new Promise((resolve, reject) => {
    const listen = (chunk: Buffer) => {
      said += chunk.toString();
      if (!said.includes(text)) return;
      stream.off('data', listen);
      resolve(said);
    };
    stream.on('data', listen);
    stream.once('end', () => reject(new Error(`it ended without saying ${text}: ${said}`)));
  });
}
