// Jails: VMMs run by an OCI runtime with no more rights than they declared. A jail outlives the agent that started it;
// whoever knows its name can end it and clean up after it, however far its start had come.
import { mkdir, open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '@cloister/kit/program.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { InheritedSocket } from './inheritedSocket.ts';
import { cpuQuota, type JailOptions, jailConfig } from './jailBundle.ts';
import { cgroupMounts, childCgroups, destroyCgroup, limitCpu, removeEmptyCgroup } from './jailCgroup.ts';
import { findProcess, type JailProcess, killProcess } from './jailProcess.ts';

const START_TIMEOUT_MS = 20_000;
/** Of what the VMM and the runtime printed, so much goes into an error. */
const REASON_BYTES = 600;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}$/;

/** Which jail: enough to find everything of it. */
export interface JailName {
  /** Letters, digits, "_", "-" and "."; unique on the node. */
  readonly id: string;
  /** The sandbox's folder, which is there already; the jail's own files go to "jail" in it. */
  readonly folder: string;
  /** Absolute, in every cgroup hierarchy; its last part is this jail's own. */
  readonly cgroupPath: string;
}

export interface JailSpec extends JailName, Omit<JailOptions, 'cgroupPath'> {
  /** Gives up the start; what it had made is for `destroy` to remove. */
  readonly signal?: AbortSignal;
}

/** What the VMM prints goes here, appended; it may be truncated at any time. It cannot grow beyond RLIMIT_FSIZE. */
export function vmmLogPath(folder: string): string {
  return join(folder, 'jail', 'vmm.log');
}

/** The end of what the runtime and the VMM printed, in one line of printable characters. Hostile text. */
export async function lastWords(folder: string): Promise<string> {
  const text = await readTail(vmmLogPath(folder)).catch(() => '');
  return text === '' ? 'it printed nothing' : text;
}

export class Jails {
  readonly #runtime: string;
  readonly #statePath: string;
  readonly #mounts: readonly string[];

  private constructor(runtime: string, statePath: string, mounts: readonly string[]) {
    this.#runtime = runtime;
    this.#statePath = statePath;
    this.#mounts = mounts;
  }

  /** `statePath`: the runtime's own notes, of this node's jails only. `runtime`: runc (or crun, on pure cgroup v2). */
  static async open(options: { statePath: string; runtime?: string }): Promise<Jails> {
    await mkdir(options.statePath, { recursive: true, mode: 0o700 });
    return new Jails(options.runtime ?? 'runc', options.statePath, await cgroupMounts());
  }

  /**
   * Starts the VMM; returns when it has been executed (or is about to be). It gets /dev/null as standard input, a log
   * as its outputs, and its sockets. Throws `sandbox.start-failed`; call `destroy` then, as after any end.
   */
  async start(spec: JailSpec): Promise<JailProcess> {
    if (!NAME.test(spec.id))
      throw new CloisterError('internal', `"${spec.id}" cannot be the name of a jail.`);
    const bundle = join(spec.folder, 'jail');
    await mkdir(bundle, { mode: 0o700 });
    await writeFile(join(bundle, 'config.json'), JSON.stringify(jailConfig(spec)), { mode: 0o600 });
    const log = await open(vmmLogPath(spec.folder), 'a', 0o600);
    const sockets: InheritedSocket[] = [];
    try {
      for (const path of spec.launch.sockets) sockets.push(await InheritedSocket.listen(path));
      const started = run(this.#runtime, this.#startArgs(spec.id, bundle, sockets.length), {
        timeoutMs: START_TIMEOUT_MS,
        outputFd: log.fd,
        inheritedFds: sockets.map((socket) => socket.fd),
        ...(spec.signal ? { signal: spec.signal } : {}),
      });
      await Promise.all([started, ...sockets.map((socket) => socket.publish())]);
      return await this.#startedProcess(spec.folder);
    } catch (error) {
      await Promise.all(sockets.map((socket) => socket.close()));
      if (spec.signal?.aborted || error instanceof CloisterError) throw error;
      throw new CloisterError(
        'sandbox.start-failed',
        `The jail could not be started: ${await lastWords(spec.folder)}`,
        { cause: error },
      );
    } finally {
      await log.close();
    }
  }

  #startArgs(id: string, bundle: string, sockets: number): string[] {
    return [
      '--root',
      this.#statePath,
      '--log',
      join(bundle, 'runtime.log'),
      'run',
      '--detach',
      '--bundle',
      bundle,
      '--pid-file',
      join(bundle, 'pid'),
      '--no-new-keyring',
      '--preserve-fds',
      `${sockets}`,
      id,
    ];
  }

  async #startedProcess(folder: string): Promise<JailProcess> {
    const found = await findProcess(Number(await readFile(join(folder, 'jail', 'pid'), 'utf8')));
    if (!found)
      throw new CloisterError('sandbox.start-failed', `The VMM ended at once: ${await lastWords(folder)}`);
    return found;
  }

  /** Sets the jail's share of CPU time anew, in thousandths of a CPU. */
  async limitCpu(name: JailName, cpuMilli: number): Promise<void> {
    await limitCpu(this.#mounts, name.cgroupPath, cpuQuota(cpuMilli));
  }

  /** Ends the VMM, now: 5 ms. Its memory, mounts and namespaces go with it; `destroy` removes what stays. */
  async kill(process: JailProcess): Promise<boolean> {
    return await killProcess(process);
  }

  /**
   * Ends everything of the jail and removes everything of it: processes, cgroups, the runtime's notes, the bundle.
   * As often as you like, whatever is there: a start may have been killed in its middle. What the runtime's own
   * `delete` does is this, with another process to start and wait for.
   */
  async destroy(name: JailName): Promise<void> {
    if (!NAME.test(name.id))
      throw new CloisterError('internal', `"${name.id}" cannot be the name of a jail.`);
    await destroyCgroup(this.#mounts, name.cgroupPath);
    await rm(join(this.#statePath, name.id), { recursive: true, force: true });
    await rm(join(name.folder, 'jail'), { recursive: true, force: true });
  }

  /** Every jail that there is anything of, running or not: in the runtime's notes, or as a cgroup below this one. */
  async list(parentCgroupPath: string): Promise<string[]> {
    const noted = await readdir(this.#statePath);
    return [...new Set([...noted, ...(await childCgroups(this.#mounts, parentCgroupPath))])].sort();
  }

  /** Removes a parent of jails' cgroups, where it is empty. */
  async cleanupParentCgroup(path: string): Promise<void> {
    await removeEmptyCgroup(this.#mounts, path);
  }
}

async function readTail(path: string): Promise<string> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    const buffer = Buffer.alloc(Math.min(size, REASON_BYTES));
    await file.read(buffer, 0, buffer.length, size - buffer.length);
    return buffer
      .toString('latin1')
      .replaceAll(/[^ -~]+/g, ' ')
      .trim();
  } finally {
    await file.close();
  }
}
