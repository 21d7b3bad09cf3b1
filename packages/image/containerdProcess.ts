// A containerd of our own: its own folder, configuration and socket, and only the plugins that we call. It outlives
// an agent that is killed, so that the next agent adopts it, downloads included.
//
// It is known by its command line, `containerd --config OUR-FILE`: unlike a pid file, that is there from the moment it
// runs, cannot be stale, and cannot name a stranger's process. One that does not answer is replaced.
import { spawn } from 'node:child_process';
import { mkdir, open, readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { writeFileDurably } from '@cloister/kit/file.ts';
import { type Logger, silentLogger } from '@cloister/kit/log.ts';
import { MINIMAL_ENV } from '@cloister/kit/program.ts';
import { poll } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { ContainerdClient } from './containerd.ts';

export interface ContainerdOptions {
  /** Holds everything of it, the socket too (so: at most 80 characters). */
  readonly folder: string;
  readonly command?: string;
  readonly clock?: Clock;
  readonly logger?: Logger;
  /** For it to serve, on a machine under load. Default 30,000. */
  readonly startTimeoutMs?: number;
}

const STOP_TIMEOUT_MS = 10_000;
const ADOPT_TIMEOUT_MS = 5_000;
const MAX_FOLDER_LENGTH = 80; // sun_path has 108 bytes
/** Running containers, the CRI, other snapshotters, tracing: not our use of it, and surface. */
const DISABLED_PLUGINS = [
  'grpc.v1.cri',
  'grpc.v1.containers',
  'grpc.v1.images',
  'grpc.v1.tasks',
  'service.v1.containers-service',
  'service.v1.images-service',
  'service.v1.tasks-service',
  'internal.v1.opt',
  'internal.v1.restart',
  'internal.v1.tracing',
  'monitor.v1.cgroups',
  'runtime.v1.linux',
  'runtime.v2.task',
  'snapshotter.v1.aufs',
  'snapshotter.v1.btrfs',
  'snapshotter.v1.devmapper',
  'snapshotter.v1.native',
  'snapshotter.v1.zfs',
  'tracing.processor.v1.otlp',
];

interface Process {
  readonly pid: number;
  /** In clock ticks since boot: a pid and this name a process for ever. */
  readonly startTicks: string;
}

export class ContainerdProcess {
  readonly socketPath: string;
  /** Where its content and its snapshots are. */
  readonly rootFolder: string;
  readonly #process: Process;
  readonly #clock: Clock;

  private constructor(paths: Paths, process: Process, clock: Clock) {
    this.socketPath = paths.socket;
    this.rootFolder = paths.root;
    this.#process = process;
    this.#clock = clock;
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** Adopts the one that runs from this folder, or starts one. Returns when it serves. Throws 'unavailable'. */
  static async open(options: ContainerdOptions): Promise<ContainerdProcess> {
    const clock = options.clock ?? systemClock;
    const logger = options.logger ?? silentLogger;
    const paths = pathsOf(options.folder);
    await mkdir(paths.root, { recursive: true, mode: 0o700 });
    const running = await findProcesses(paths.config);
    const first = running[0];
    if (first && running.length === 1 && (await serves(paths.socket, clock, ADOPT_TIMEOUT_MS))) {
      logger.info({ containerdPid: first.pid }, 'adopted containerd');
      return new ContainerdProcess(paths, first, clock);
    }
    for (const stale of running) {
      logger.warn({ containerdPid: stale.pid }, 'replacing a containerd that does not answer');
      await end(stale, 'SIGKILL', clock);
    }
    await rm(paths.socket, { force: true });
    await rm(`${paths.socket}.ttrpc`, { force: true });
    const process = await start(options, paths, clock);
    logger.info({ containerdPid: process.pid }, 'started containerd');
    return new ContainerdProcess(paths, process, clock);
  }

  /** Ends it, if need be by force, and waits until it is gone. Its content stays. */
  async stop(): Promise<void> {
    try {
      await end(this.#process, 'SIGTERM', this.#clock);
    } catch {
      await end(this.#process, 'SIGKILL', this.#clock);
    }
    await rm(this.socketPath, { force: true });
    await rm(`${this.socketPath}.ttrpc`, { force: true });
  }

  /** Stops it at the end of an `await using`, as tests do. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

/** The process id of the one that runs from this folder, whether it serves or not. */
export async function findContainerd(folder: string): Promise<number | undefined> {
  return (await findProcesses(pathsOf(folder).config))[0]?.pid;
}

/** Ends the one that runs from this folder, if one does, without starting it first. */
export async function stopContainerd(folder: string, clock: Clock = systemClock): Promise<void> {
  for (const process of await findProcesses(pathsOf(folder).config)) {
    try {
      await end(process, 'SIGTERM', clock);
    } catch {
      await end(process, 'SIGKILL', clock);
    }
  }
}

interface Paths {
  readonly config: string;
  readonly socket: string;
  readonly root: string;
  readonly state: string;
  readonly log: string;
}

function pathsOf(folder: string): Paths {
  if (!folder.startsWith('/') || folder.length > MAX_FOLDER_LENGTH || /["\\\n]/.test(folder)) {
    throw new CloisterError(
      'request.invalid',
      `containerd's folder "${folder}" must be an absolute path of at most ${MAX_FOLDER_LENGTH} characters.`,
    );
  }
  return {
    config: join(folder, 'config.toml'),
    socket: join(folder, 'containerd.sock'),
    root: join(folder, 'root'),
    state: join(folder, 'state'),
    log: join(folder, 'containerd.log'),
  };
}

async function start(options: ContainerdOptions, paths: Paths, clock: Clock): Promise<Process> {
  await writeFileDurably(paths.config, configText(paths));
  const log = await open(paths.log, 'w', 0o600); // begins anew with each start, so it cannot grow for ever
  const child = spawn(options.command ?? 'containerd', ['--config', paths.config], {
    detached: true, // a session of its own: what ends the agent's does not end it
    stdio: ['ignore', log.fd, log.fd],
    env: MINIMAL_ENV,
    cwd: '/',
  });
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {});
  child.once('error', (error) => failed.reject(unavailable('containerd could not be run', error)));
  child.once('exit', (code) =>
    failed.reject(unavailable(`containerd ended at once with exit code ${code}; see ${paths.log}`)),
  );
  child.unref();
  await log.close();
  const timeoutMs = options.startTimeoutMs ?? 30_000;
  try {
    const serving = await Promise.race([serves(paths.socket, clock, timeoutMs), failed.promise]);
    if (!serving) throw unavailable(`containerd did not serve within ${timeoutMs} ms; see ${paths.log}`);
    const process = child.pid === undefined ? undefined : await readProcess(child.pid);
    if (!process) throw unavailable(`containerd ended at once; see ${paths.log}`);
    return process;
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
}

function configText(paths: Paths): string {
  return [
    'version = 2',
    `root = "${paths.root}"`,
    `state = "${paths.state}"`,
    `disabled_plugins = [${DISABLED_PLUGINS.map((name) => `"io.containerd.${name}"`).join(', ')}]`,
    '[grpc]',
    `address = "${paths.socket}"`,
    'tcp_address = ""',
    '[debug]',
    'address = ""',
    'level = "warn"',
    '[metrics]',
    'address = ""',
    '',
  ].join('\n');
}

async function serves(socketPath: string, clock: Clock, timeoutMs: number): Promise<boolean> {
  const attempt = async (): Promise<true | undefined> => {
    if (!(await isThere(socketPath))) return undefined;
    const client = new ContainerdClient(socketPath);
    try {
      await client.version({ timeoutMs: 1000 });
      return true;
    } catch {
      return undefined;
    } finally {
      client.close();
    }
  };
  const late = new Error('late');
  try {
    return await poll(attempt, { clock, everyMs: 20, timeoutMs, makeError: () => late });
  } catch (error) {
    if (error === late) return false;
    throw error;
  }
}

/** Every process of our user whose command line is containerd with exactly this configuration. */
async function findProcesses(configPath: string): Promise<Process[]> {
  const found: Process[] = [];
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const words = (await readFile(`/proc/${entry}/cmdline`, 'utf8')).split('\0');
      if (words[1] !== '--config' || words[2] !== configPath || !words[0]?.endsWith('containerd')) continue;
      if ((await stat(`/proc/${entry}`)).uid !== process.getuid?.()) continue;
      const candidate = await readProcess(Number(entry));
      if (candidate) found.push(candidate);
    } catch {
      // It ended while we looked.
    }
  }
  return found;
}

/** Undefined when there is none, or only what is left of it for its parent to reap. */
async function readProcess(pid: number): Promise<Process | undefined> {
  try {
    const text = await readFile(`/proc/${pid}/stat`, 'utf8');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' '); // the name before it may hold anything
    const [state, startTicks] = [fields[0], fields[19]];
    return state === 'Z' || state === 'X' || startTicks === undefined ? undefined : { pid, startTicks };
  } catch {
    return undefined;
  }
}

async function end(target: Process, signal: NodeJS.Signals, clock: Clock): Promise<void> {
  const isGone = async (): Promise<true | undefined> => {
    const now = await readProcess(target.pid);
    return now?.startTicks === target.startTicks ? undefined : true;
  };
  if (await isGone()) return;
  process.kill(target.pid, signal);
  await poll(isGone, {
    clock,
    everyMs: 10,
    timeoutMs: STOP_TIMEOUT_MS,
    makeError: () =>
      unavailable(`containerd (pid ${target.pid}) did not end within ${STOP_TIMEOUT_MS} ms of ${signal}`),
  });
}

async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

function unavailable(why: string, cause?: unknown): CloisterError {
  return new CloisterError('unavailable', `${why}.`, { cause });
}
