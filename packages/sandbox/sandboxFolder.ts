// What a sandbox keeps on the node's disk, so that an agent that was killed at any moment finds out what there is:
//   sandbox.json   what was asked for, before anything else is made
//   machine.json   the VMM, once it runs and before the workload is started: without it, no workload ever ran
//   end.json       how it ended, before the machine is given up
//   output/        what the workload wrote
//   scratch, run/, jail/   of the machine, gone when it has ended
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import type { Timeline } from '@cloister/model/job.ts';
import type { JailProcess } from './jailProcess.ts';
import type { EndState, SandboxRequest } from './sandbox.ts';

export interface SandboxRecord {
  readonly request: SandboxRequest;
  /** User and group of its jail. */
  readonly uid: number;
}

export interface MachineRecord {
  readonly process: JailProcess;
  readonly timeline: Timeline;
}

export interface EndRecord {
  readonly state: EndState;
  readonly timeline: Timeline;
}

export class SandboxFolder {
  readonly path: string;
  readonly runPath: string;
  readonly scratchPath: string;
  readonly outputPath: string;

  constructor(path: string) {
    this.path = path;
    this.runPath = join(path, 'run');
    this.scratchPath = join(path, 'scratch');
    this.outputPath = join(path, 'output');
  }

  async make(): Promise<void> {
    await mkdir(this.path, { mode: 0o700 });
    await mkdir(this.runPath, { mode: 0o700 });
  }

  async writeRecord(record: SandboxRecord): Promise<void> {
    await this.#write('sandbox.json', record);
  }

  async writeMachine(record: MachineRecord): Promise<void> {
    await this.#write('machine.json', record);
  }

  async writeEnd(record: EndRecord): Promise<void> {
    await this.#write('end.json', record);
  }

  /** Undefined when there is none, or not a whole one. */
  async readRecord(): Promise<SandboxRecord | undefined> {
    return (await this.#read('sandbox.json')) as SandboxRecord | undefined;
  }

  async readMachine(): Promise<MachineRecord | undefined> {
    return (await this.#read('machine.json')) as MachineRecord | undefined;
  }

  async readEnd(): Promise<EndRecord | undefined> {
    return (await this.#read('end.json')) as EndRecord | undefined;
  }

  /** The machine's files. The jail's are the jail's to remove. */
  async removeMachineFiles(): Promise<void> {
    await rm(this.scratchPath, { force: true });
    await rm(this.runPath, { recursive: true, force: true });
  }

  async remove(): Promise<void> {
    await rm(this.path, { recursive: true, force: true });
  }

  async #write(name: string, value: object): Promise<void> {
    await writeFileDurably(join(this.path, name), JSON.stringify(value));
  }

  /** Written by ourselves, whole or not at all, in a folder of mode 0700: what parses is ours. */
  async #read(name: string): Promise<unknown> {
    const text = await readFileIfThere(join(this.path, name));
    if (text === undefined) return undefined;
    try {
      return JSON.parse(text);
    } catch {
      return undefined;
    }
  }
}
