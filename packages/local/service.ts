// A program that runs in the background for a local cluster: started once, found again by whoever comes later, stopped
// for good. Known by its process id and the moment of its start, so that no stranger is ever taken for it.
import { spawn } from 'node:child_process';
import { mkdir, open, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '@cloister/kit/clock.ts';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import { MINIMAL_ENV } from '@cloister/kit/program.ts';
import { poll } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { findProcess, isAlive, type JailProcess, killProcess } from '@cloister/sandbox/jailProcess.ts';

const LOG_LINES_IN_ERRORS = 8;
const KILL_TIMEOUT_MS = 10_000;

export interface ServiceOptions {
  /** Of the cluster. The service's files are NAME.pid, NAME.log and NAME.out in it. */
  readonly folder: string;
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** From its start until it is ready. */
  readonly startTimeoutMs: number;
  /** From SIGTERM until it is killed. */
  readonly stopTimeoutMs: number;
  /** True when it serves. Default: it has printed a line on standard output. */
  readonly isReady?: () => Promise<boolean>;
}

export class Service {
  readonly #options: ServiceOptions;

  constructor(options: ServiceOptions) {
    this.#options = options;
  }

  get logPath(): string {
    return join(this.#options.folder, `${this.#options.name}.log`);
  }

  /** Undefined when it does not run. */
  async find(): Promise<JailProcess | undefined> {
    const text = await readFileIfThere(this.#pidPath());
    if (text === undefined) return undefined;
    const known = JSON.parse(text) as JailProcess;
    return (await isAlive(known)) ? known : undefined;
  }

  /** Starts it, unless it runs, and waits until it is ready. Gives what it printed first. */
  async start(): Promise<string> {
    const { folder, name, command, args, env, startTimeoutMs } = this.#options;
    if (await this.find()) return await this.#firstLine();
    await mkdir(folder, { recursive: true });
    await rm(this.#outPath(), { force: true });
    const [log, out] = [await open(this.logPath, 'a', 0o600), await open(this.#outPath(), 'w', 0o600)];
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
    const process = child.pid === undefined ? undefined : await findProcess(child.pid);
    if (process) await writeFileDurably(this.#pidPath(), JSON.stringify(process));
    await poll(
      async () => {
        if (ended !== undefined) throw await this.#failure(ended);
        return (await this.#isReady()) ? true : undefined;
      },
      {
        clock: systemClock,
        everyMs: 10,
        timeoutMs: startTimeoutMs,
        makeError: () =>
          new CloisterError(
            'unavailable',
            `${name} was not ready after ${startTimeoutMs} ms; see ${this.logPath}`,
          ),
      },
    );
    return await this.#firstLine();
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

  async #isReady(): Promise<boolean> {
    if (this.#options.isReady) return await this.#options.isReady();
    return (await readFile(this.#outPath(), 'utf8')).includes('\n');
  }

  async #firstLine(): Promise<string> {
    return ((await readFileIfThere(this.#outPath())) ?? '').split('\n')[0] ?? '';
  }

  async #failure(why: string): Promise<CloisterError> {
    const lines = ((await readFileIfThere(this.logPath)) ?? '')
      .trimEnd()
      .split('\n')
      .slice(-LOG_LINES_IN_ERRORS);
    return new CloisterError(
      'unavailable',
      `${this.#options.name} could not be started: ${why}. The end of ${this.logPath}:\n${lines.join('\n')}`,
    );
  }

  #pidPath(): string {
    return join(this.#options.folder, `${this.#options.name}.pid`);
  }

  #outPath(): string {
    return join(this.#options.folder, `${this.#options.name}.out`);
  }
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
