// A mount that nobody else sees, and that cannot outlive us. A mount namespace is held by a program that waits for the
// end of its input, a pipe of ours: if the agent is killed, the pipe ends, the program with it, and the kernel takes
// the namespace with all that is mounted in it apart. Programs that need the mount are started inside, and have no
// network there: what an image's author made up must not lead them to send what they can read.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { MINIMAL_ENV, type RunOptions, type RunResult, run, runUnchecked } from '@cloister/kit/program.ts';
import { withTimeout } from '@cloister/kit/wait.ts';

const START_TIMEOUT_MS = 30_000;
const MOUNT_TIMEOUT_MS = 30_000;

export class PrivateMounts {
  readonly #holder: ChildProcess;

  private constructor(holder: ChildProcess) {
    this.#holder = holder;
  }

  static async open(): Promise<PrivateMounts> {
    const holder = spawn('unshare', ['--mount', '--propagation', 'private', '--net', 'cat'], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: MINIMAL_ENV,
      cwd: '/',
    });
    const mounts = new PrivateMounts(holder);
    try {
      holder.stdin?.on('error', () => {}); // shows as an exit
      holder.stdin?.write('.');
      // What comes back has been through `cat`, which runs only when the namespace is there.
      const ready = holder.stdout ? once(holder.stdout, 'data') : Promise.reject(new Error('no output'));
      const ended = once(holder, 'exit').then(() => {
        throw new Error('unshare could not make a mount namespace; it needs root');
      });
      const isReady = Promise.race([ready, ended]);
      await withTimeout(
        isReady,
        START_TIMEOUT_MS,
        () => new Error(`no mount namespace within ${START_TIMEOUT_MS} ms`),
      );
      return mounts;
    } catch (error) {
      await mounts.close();
      throw error;
    }
  }

  /** Of the program that holds the namespace. */
  get holderPid(): number | undefined {
    return this.#holder.pid;
  }

  /** Mounts folders read-only on `target`, the topmost first. They are named from `base`: the kernel takes one page of options, whatever `base` is. */
  async mountOverlay(base: string, folders: readonly string[], target: string): Promise<void> {
    const options = `ro,nosuid,nodev,noexec,lowerdir=${folders.join(':')}`;
    // `env --chdir` after entering: a working directory taken along would lie in the other namespace.
    const mount = [
      'mount',
      '--no-canonicalize',
      '--types',
      'overlay',
      '--options',
      options,
      'overlay',
      target,
    ];
    await run('nsenter', [...this.#enter(), 'env', `--chdir=${base}`, ...mount], {
      timeoutMs: MOUNT_TIMEOUT_MS,
    });
  }

  /** Runs a program that sees the mounts. Paths must be absolute. */
  async runUnchecked(command: string, args: readonly string[], options: RunOptions): Promise<RunResult> {
    return await runUnchecked('nsenter', [...this.#enter(), command, ...args], options);
  }

  /** Every mount is gone when this returns, unless a program still runs inside. */
  async close(): Promise<void> {
    if (this.#holder.exitCode !== null || this.#holder.signalCode !== null || this.#holder.pid === undefined)
      return;
    const exit = once(this.#holder, 'exit');
    this.#holder.kill('SIGKILL');
    await exit;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #enter(): string[] {
    const namespaces = `/proc/${this.#holder.pid}/ns`;
    return [`--mount=${namespaces}/mnt`, `--net=${namespaces}/net`, '--'];
  }
}
