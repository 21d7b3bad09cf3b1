// A program that runs in the background for a local cluster: started once, found again by whoever comes later, stopped
// for good. Known by its process id and the moment of its start, so that no stranger is ever taken for it; and by its
// command line, should whoever started it have been killed before they wrote that down.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { systemClock } from '@cloister/kit/clock.ts';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import { MINIMAL_ENV } from '@cloister/kit/program.ts';
import { poll } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { findProcess, isAlive, type JailProcess, killProcess } from '@cloister/sandbox/jailProcess.ts';

const LOG_LINES_IN_ERRORS = 20;
const LOG_LINE_CHARACTERS_IN_ERRORS = 300;
const KILL_TIMEOUT_MS = 10_000;

export interface ServiceOptions {
  /** Of the cluster. The service's files are NAME.pid, NAME.log and NAME.out in it. */
  readonly folder: string;
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Of loopback, that it will listen on. */
  readonly ports?: readonly number[];
  /** From its start until it is ready. */
  readonly startTimeoutMs: number;
  /** From SIGTERM until it is killed. */
  readonly stopTimeoutMs: number;
  /** True when it serves. Default: it has printed a line on standard output. */
  readonly isReady?: () => Promise<boolean>;
}

export class Service {
  readonly name: string;
  readonly #options: ServiceOptions;

  constructor(options: ServiceOptions) {
    this.name = options.name;
    this.#options = options;
  }

  /** Of the present run; the one before it is beside it, with ".before" to its name. */
  get logPath(): string {
    return join(this.#options.folder, `${this.name}.log`);
  }

  /** Undefined when it does not run. */
  async find(): Promise<JailProcess | undefined> {
    const text = await readFileIfThere(this.#pidPath());
    const known = text === undefined ? undefined : (JSON.parse(text) as JailProcess);
    if (known && (await isAlive(known))) return known;
    return await findByCommand([this.#options.command, ...this.#options.args]);
  }

  /**
   * Starts it, unless it runs, and waits until it is ready. One that does not become ready is ended again, unless it ran
   * before. Throws `unavailable` with the end of its log, or the signal's reason.
   */
  async start(signal?: AbortSignal): Promise<JailProcess> {
    const running = await this.find();
    if (running) return await this.#adopt(running, signal);
    signal?.throwIfAborted();
    for (const port of this.#options.ports ?? []) await this.#claim(port);
    const { child, ended } = await this.#spawn();
    const process = child.pid === undefined ? undefined : await findProcess(child.pid);
    if (process) await this.#record(process);
    try {
      await this.#becomesReady(ended, signal);
      if (!process) throw await this.#failure('it ended at once');
      return process;
    } catch (error) {
      await this.kill();
      throw error;
    }
  }

  /** SIGTERM, and SIGKILL to what does not mind it. Returns when it is gone; none there is fine. */
  async stop(): Promise<void> {
    const process = await this.find();
    if (process) {
      globalThis.process.kill(process.pid, 'SIGTERM');
      await gone(process, this.#options.stopTimeoutMs).catch(() => this.kill());
    }
    await rm(this.#pidPath(), { force: true });
  }

  async kill(): Promise<void> {
    const process = await this.find();
    if (!process) return;
    await killProcess(process);
    await gone(process, KILL_TIMEOUT_MS);
  }

  /** Whoever started it may have been killed before it was ready, and before it was recorded. */
  async #adopt(running: JailProcess, signal: AbortSignal | undefined): Promise<JailProcess> {
    await this.#record(running);
    await this.#becomesReady(async () => ((await isAlive(running)) ? undefined : 'it ended'), signal);
    return running;
  }

  async #record(process: JailProcess): Promise<void> {
    await writeFileDurably(this.#pidPath(), JSON.stringify(process));
  }

  async #spawn(): Promise<{ child: ChildProcess; ended: () => string | undefined }> {
    const { command, args, env } = this.#options;
    // Begun anew with each start, so that it cannot grow for ever; what a crash said stays readable for one more.
    await rename(this.logPath, `${this.logPath}.before`).catch(() => {});
    const log = await open(this.logPath, 'w', 0o600);
    const out = await open(this.#outPath(), 'w', 0o600);
    const child = spawn(command, args, {
      detached: true, // it outlives us, and our terminal's interrupts
      stdio: ['ignore', out.fd, log.fd],
      env: { ...MINIMAL_ENV, ...env },
      cwd: '/',
    });
    let ended: string | undefined;
    child.once('error', (error) => {
      ended = error.message;
    });
    child.once('exit', (code, signal) => {
      ended = `it ended with ${signal ?? `exit code ${code}`}`;
    });
    child.unref();
    await Promise.all([log.close(), out.close()]);
    return { child, ended: () => ended };
  }

  async #becomesReady(
    ended: () => string | undefined | Promise<string | undefined>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { startTimeoutMs } = this.#options;
    const late = new Error('late');
    const check = async (): Promise<true | undefined> => {
      signal?.throwIfAborted();
      const why = await ended();
      if (why !== undefined) throw await this.#failure(why);
      return (await this.#isReady()) ? true : undefined;
    };
    try {
      await poll(check, {
        clock: systemClock,
        everyMs: 10,
        timeoutMs: startTimeoutMs,
        makeError: () => late,
        ...(signal ? { signal } : {}),
      });
    } catch (error) {
      throw error === late ? await this.#failure(`it was not ready after ${startTimeoutMs} ms`) : error;
    }
  }

  async #isReady(): Promise<boolean> {
    if (this.#options.isReady) return await this.#options.isReady();
    return (await readFileIfThere(this.#outPath()))?.includes('\n') ?? false;
  }

  /** Better said here, with the port, than guessed from a log. */
  async #claim(port: number): Promise<void> {
    const server = createServer().listen(port, '127.0.0.1');
    try {
      await once(server, 'listening');
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw cause;
      throw new CloisterError(
        'unavailable',
        `The ${this.name} needs port ${port} of 127.0.0.1, and something else has it: "ss -ltnp sport = :${port}" says what`,
      );
    }
    server.close();
    await once(server, 'close');
  }

  async #failure(why: string): Promise<CloisterError> {
    const lines = ((await readFileIfThere(this.logPath)) ?? '')
      .trimEnd()
      .split('\n')
      .slice(-LOG_LINES_IN_ERRORS)
      .map((line) => `    ${line.slice(0, LOG_LINE_CHARACTERS_IN_ERRORS)}`);
    return new CloisterError(
      'unavailable',
      `The ${this.name} could not be started: ${why}. The end of ${this.logPath}:\n${lines.join('\n')}`,
    );
  }

  #pidPath(): string {
    return join(this.#options.folder, `${this.name}.pid`);
  }

  #outPath(): string {
    return join(this.#options.folder, `${this.name}.out`);
  }
}

/** Its arguments name a file of its cluster's folder, so that they are nobody else's. */
async function findByCommand(words: readonly string[]): Promise<JailProcess | undefined> {
  const commandLine = `${words.join('\0')}\0`;
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      if ((await readFile(`/proc/${entry}/cmdline`, 'utf8')) !== commandLine) continue;
      if ((await stat(`/proc/${entry}`)).uid !== process.getuid?.()) continue;
      const found = await findProcess(Number(entry));
      if (found) return found;
    } catch {
      // It ended while we looked.
    }
  }
  return undefined;
}

async function gone(process: JailProcess, timeoutMs: number): Promise<void> {
  await poll(async () => ((await isAlive(process)) ? undefined : true), {
    clock: systemClock,
    everyMs: 5,
    timeoutMs,
    makeError: () =>
      new CloisterError('internal', `Process ${process.pid} has not ended after ${timeoutMs} ms.`),
  });
}
