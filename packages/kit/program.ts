// Running other programs: argument arrays only, a time limit, and bounded output, always.
import { spawn } from 'node:child_process';

export interface RunOptions {
  /** Kills the program (SIGKILL) after this long. */
  readonly timeoutMs: number;
  /** Working directory. Default: ours. */
  readonly cwd?: string;
  /** The whole environment of the program. Default: PATH only. */
  readonly env?: Readonly<Record<string, string>>;
  /** What it reads on standard input. Default: nothing. */
  readonly input?: string | Buffer;
  /** Kept of each output stream: the last this many bytes. Default 65,536. */
  readonly maxOutputBytes?: number;
  /** Both outputs go to this open file instead, and nothing is kept: for programs that leave a daemon behind. */
  readonly outputFd?: number;
  /** Open files that the program finds as descriptors 3, 4, and so on. */
  readonly inheritedFds?: readonly number[];
  /** In a session of its own: a terminal's Ctrl-C, which goes to all that runs in it, does not end the program. */
  readonly detached?: boolean;
  readonly signal?: AbortSignal;
}

export interface RunResult {
  readonly stdout: string;
  readonly stderr: string;
  /** null when a signal ended it. */
  readonly exitCode: number | null;
}

export class ProgramError extends Error {
  readonly result: RunResult;
  constructor(command: string, why: string, result: RunResult, cause?: unknown) {
    const tail = result.stderr.trim().split('\n').slice(-3).join('; ').slice(-500);
    super(`${command} ${why}${tail ? `: ${tail}` : ''}`, cause === undefined ? undefined : { cause });
    this.name = 'ProgramError';
    this.result = result;
  }
}

/** For what was written before the program ended. Then its pipes are let go, whoever of its children still has them. */
const PIPES_GRACE_MS = 1_000;

class Tail {
  #chunks: Buffer[] = [];
  #bytes = 0;
  readonly #max: number;
  constructor(max: number) {
    this.#max = max;
  }
  push(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    while (this.#bytes - (this.#chunks[0]?.length ?? 0) >= this.#max) {
      this.#bytes -= this.#chunks.shift()?.length ?? 0;
    }
  }
  text(): string {
    return Buffer.concat(this.#chunks).subarray(-this.#max).toString('utf8');
  }
}

export const MINIMAL_ENV = { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' } as const;

/** Runs to the end and returns what it printed, whatever its exit code. Throws ProgramError when it could not be started or took too long. */
export async function runUnchecked(
  command: string,
  args: readonly string[],
  options: RunOptions,
): Promise<RunResult> {
  const stdout = new Tail(options.maxOutputBytes ?? 65_536);
  const stderr = new Tail(options.maxOutputBytes ?? 65_536);
  const child = spawn(command, args, {
    cwd: options.cwd,
    env: options.env ?? MINIMAL_ENV,
    stdio: [
      options.input === undefined ? 'ignore' : 'pipe',
      options.outputFd ?? 'pipe',
      options.outputFd ?? 'pipe',
      ...(options.inheritedFds ?? []),
    ],
    detached: options.detached ?? false,
    timeout: options.timeoutMs,
    killSignal: 'SIGKILL',
    ...(options.signal ? { signal: options.signal } : {}),
  });
  child.stdout?.on('data', (chunk: Buffer) => stdout.push(chunk));
  child.stderr?.on('data', (chunk: Buffer) => stderr.push(chunk));
  child.stdin?.on('error', () => {}); // a program that does not read its input is no error of ours
  child.stdin?.end(options.input);
  const startedAt = performance.now();
  const { promise, resolve, reject } = Promise.withResolvers<RunResult>();
  const result = (exitCode: number | null): RunResult => ({
    stdout: stdout.text(),
    stderr: stderr.text(),
    exitCode,
  });
  child.once('error', (error) => reject(new ProgramError(command, 'could not be run', result(null), error)));
  let letGo: NodeJS.Timeout | undefined;
  child.once('exit', () => {
    const destroyPipes = (): void => {
      child.stdout?.destroy();
      child.stderr?.destroy();
    };
    // Not in the timer itself: should we have been too busy to read, what is in the pipes is read first.
    letGo = setTimeout(() => setImmediate(destroyPipes), PIPES_GRACE_MS);
  });
  child.once('close', (exitCode) => {
    clearTimeout(letGo);
    if (exitCode === null && performance.now() - startedAt >= options.timeoutMs) {
      reject(new ProgramError(command, `was killed after ${options.timeoutMs} ms`, result(null)));
    } else {
      resolve(result(exitCode));
    }
  });
  return await promise;
}

/** As runUnchecked, but any exit code but 0 throws ProgramError. */
export async function run(command: string, args: readonly string[], options: RunOptions): Promise<RunResult> {
  const result = await runUnchecked(command, args, options);
  if (result.exitCode !== 0) {
    throw new ProgramError(
      command,
      result.exitCode === null ? 'was killed' : `failed with exit code ${result.exitCode}`,
      result,
    );
  }
  return result;
}
