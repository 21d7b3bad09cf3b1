// All sandboxes of a node: made, found by name, and found again after the agent was restarted.
import { mkdir, readdir, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { type Logger, silentLogger } from '@cloister/kit/log.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { EndedSandbox } from './endedSandbox.ts';
import { vmmLogPath } from './jail.ts';
import { isAlive } from './jailProcess.ts';
import { LiveSandbox, type LiveSandboxParts } from './liveSandbox.ts';
import { Machine, type MachineParts } from './machine.ts';
import { OutputLog, type OutputLogLimits } from './outputLog.ts';
import type { Sandbox, SandboxRequest } from './sandbox.ts';
import { type MachineRecord, SandboxFolder, type SandboxRecord } from './sandboxFolder.ts';

/** Under emulation, on a machine that boots many at once. */
const DEFAULT_BOOT_TIMEOUT_MS = 60_000;
const TRIM_EVERY_MS = 10_000;
const MAX_VMM_LOG_BYTES = 65_536;
/** For all adopted sandboxes together to answer; those that have not by then go on trying. */
const ADOPT_TIMEOUT_MS = 10_000;
/** Sandboxes whose leftovers are removed at once. */
const ADOPT_AT_ONCE = 16;

export interface SandboxesOptions extends MachineParts {
  /** Absolute. "sandboxes" is made in it. */
  readonly statePath: string;
  /** Users and groups for jails, one for each, used by nothing else on the host. */
  readonly uids: { readonly first: number; readonly count: number };
  /** The state or the timeline of a sandbox has changed. Must not throw. */
  readonly onChange: (sandbox: Sandbox) => void;
  readonly clock?: Clock;
  readonly logger?: Logger;
  /** From the VMM's start to the guest's first answer. Default 60 s. */
  readonly bootTimeoutMs?: number;
  /** Of each sandbox's output. */
  readonly outputLimits?: Partial<OutputLogLimits>;
}

export class Sandboxes {
  readonly #options: SandboxesOptions;
  readonly #parts: LiveSandboxParts;
  readonly #folder: string;
  readonly #all = new Map<string, Sandbox>();
  readonly #uids = new Set<number>();
  readonly #trimming: NodeJS.Timeout;

  private constructor(options: SandboxesOptions) {
    this.#options = options;
    this.#folder = join(options.statePath, 'sandboxes');
    this.#parts = {
      ...options,
      clock: options.clock ?? systemClock,
      logger: options.logger ?? silentLogger,
      bootTimeoutMs: options.bootTimeoutMs ?? DEFAULT_BOOT_TIMEOUT_MS,
      onChange: (sandbox) => this.#changed(sandbox),
    };
    this.#trimming = setInterval(() => void this.#trimLogs(), TRIM_EVERY_MS).unref();
  }

  /**
   * Finds what the folder holds. Machines that run are adopted, and go on as if nothing had been; sandboxes that have
   * ended are there with their output; those whose workload had not been started are removed, as if never made.
   */
  static async open(options: SandboxesOptions): Promise<Sandboxes> {
    const sandboxes = new Sandboxes(options);
    await mkdir(sandboxes.#folder, { recursive: true, mode: 0o700 });
    const ids = await readdir(sandboxes.#folder);
    for (let at = 0; at < ids.length; at += ADOPT_AT_ONCE)
      await Promise.all(ids.slice(at, at + ADOPT_AT_ONCE).map((id) => sandboxes.#find(id)));
    await sandboxes.#removeStrangers();
    await sandboxes.#untilAdopted();
    return sandboxes;
  }

  get(id: string): Sandbox | undefined {
    return this.#all.get(id);
  }

  all(): Sandbox[] {
    return [...this.#all.values()];
  }

  /** Begins to start it. Whatever goes wrong becomes its state. Throws when there is one of this id already. */
  create(request: SandboxRequest): Sandbox {
    if (!/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}$/.test(request.id) || this.#all.has(request.id))
      throw new CloisterError('internal', `"${request.id}" cannot be the name of a new sandbox.`);
    const sandbox = this.#live(request, this.#takeUid(), (folder, hooks) =>
      OutputLog.create(folder.outputPath, hooks, this.#options.outputLimits),
    );
    sandbox.start();
    return sandbox;
  }

  /** Ends it if it has not, and forgets it, output and all. None there is fine. */
  async remove(id: string): Promise<void> {
    const sandbox = this.#all.get(id);
    if (!sandbox) return;
    await sandbox.kill();
    await sandbox.ended;
    await new SandboxFolder(join(this.#folder, id)).remove();
    this.#all.delete(id);
  }

  /** Lets go of all: machines run on, for the next agent to adopt. Waits for those that are just being ended. */
  async close(): Promise<void> {
    clearInterval(this.#trimming);
    await Promise.all(
      this.all().map((sandbox) => (sandbox instanceof LiveSandbox ? sandbox.letGo() : undefined)),
    );
  }

  #live(
    request: SandboxRequest,
    uid: number,
    openOutput: (folder: SandboxFolder, hooks: Parameters<typeof OutputLog.create>[1]) => OutputLog,
  ): LiveSandbox {
    const folder = new SandboxFolder(join(this.#folder, request.id));
    const output = openOutput(folder, {
      onWritten: (fd, offset) => sandbox.outputWritten(fd, offset),
      onFailed: (error) => sandbox.outputFailed(error),
    });
    const sandbox = new LiveSandbox(this.#parts, { request, uid, folder, output });
    this.#uids.add(uid);
    this.#all.set(request.id, sandbox);
    return sandbox;
  }

  #takeUid(): number {
    const { first, count } = this.#options.uids;
    for (let uid = first; uid < first + count; uid++) if (!this.#uids.has(uid)) return uid;
    throw new CloisterError('limit.exceeded', `All ${count} users for sandboxes are in use on this node.`);
  }

  #changed(sandbox: Sandbox): void {
    // A user whom something is left of is given to nobody else.
    if (sandbox instanceof LiveSandbox && sandbox.isGone) this.#uids.delete(sandbox.uid);
    this.#options.onChange(sandbox);
  }

  /** One folder that is there already. */
  async #find(id: string): Promise<void> {
    const folder = new SandboxFolder(join(this.#folder, id));
    const [record, machine, end] = [
      await folder.readRecord(),
      await folder.readMachine(),
      await folder.readEnd(),
    ];
    if (!record || !(machine || end)) {
      await new Machine(this.#parts, id, folder).destroy();
      await folder.remove();
      return;
    }
    if (!end && machine && (await isAlive(machine.process))) await this.#adopt(folder, record, machine);
    else await this.#findEnded(id, folder, record, machine);
  }

  async #adopt(folder: SandboxFolder, record: SandboxRecord, machine: MachineRecord): Promise<void> {
    let sandbox: LiveSandbox | undefined;
    const output = await OutputLog.open(
      folder.outputPath,
      {
        onWritten: (fd, offset) => sandbox?.outputWritten(fd, offset),
        onFailed: (error) => sandbox?.outputFailed(error),
      },
      this.#options.outputLimits,
    );
    sandbox = this.#live(record.request, record.uid, () => output);
    sandbox.adopt(machine);
  }

  async #findEnded(
    id: string,
    folder: SandboxFolder,
    record: SandboxRecord,
    machine: MachineRecord | undefined,
  ): Promise<void> {
    await new Machine(this.#parts, id, folder).destroy();
    let end = await folder.readEnd();
    if (!end) {
      const message =
        'The machine was ended from outside while the agent was away, or the host was restarted.';
      const timeline = { ...machine?.timeline, endedAt: this.#parts.clock.now() };
      end = { state: { phase: 'failed', reason: { code: 'sandbox.vmm-died', message } }, timeline };
      await folder.writeEnd(end);
    }
    const output = await OutputLog.open(folder.outputPath, {}, this.#options.outputLimits);
    await output.finish();
    this.#all.set(id, new EndedSandbox(record.request, end, output));
  }

  /** Jails that no folder knows: of a folder that somebody deleted by hand. */
  async #removeStrangers(): Promise<void> {
    const { jails, parentCgroupPath } = this.#options;
    for (const id of await jails.list(parentCgroupPath)) {
      if (this.#all.has(id)) continue;
      await new Machine(this.#parts, id, new SandboxFolder(join(this.#folder, id))).destroy();
    }
  }

  async #untilAdopted(): Promise<void> {
    const live = this.all().filter((sandbox) => sandbox instanceof LiveSandbox);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise((resolve) => {
      timer = setTimeout(resolve, ADOPT_TIMEOUT_MS);
    });
    await Promise.race([Promise.all(live.map((sandbox) => sandbox.settled)), late]);
    clearTimeout(timer);
  }

  /** What VMMs print is hostile, and kept short. */
  async #trimLogs(): Promise<void> {
    for (const sandbox of this.#all.values()) {
      if (!(sandbox instanceof LiveSandbox)) continue;
      const path = vmmLogPath(join(this.#folder, sandbox.id));
      const about = await stat(path).catch(() => undefined);
      if (!about || about.size <= MAX_VMM_LOG_BYTES) continue;
      await truncate(path).catch((error: unknown) => {
        this.#parts.logger.warn({ path, error: describeError(error) }, 'a log could not be trimmed');
      });
    }
  }
}
