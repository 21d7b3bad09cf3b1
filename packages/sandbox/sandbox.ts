// What a sandbox is to the rest of the node: what is asked for, the states it goes through, and what can be done with it.
// Lifecycle: starting -> running -> exited | failed. An ended sandbox has nothing left on the node but its folder, with
// its output and how it ended, until it is removed.
import type { ImageConfig } from '@cloister/model/image.ts';
import type { JobSpec, Timeline } from '@cloister/model/job.ts';
import type { Reason } from '@cloister/model/schema.ts';
import type { ExecSpec } from '@cloister/model/stream.ts';
import type { OutputFd } from './frames.ts';
import type { OutputLog } from './outputLog.ts';

export interface SandboxRequest {
  /** The allocation's id; unique on the node, and a safe file name. */
  readonly id: string;
  readonly image: { readonly digest: string; readonly blockPath: string; readonly config: ImageConfig };
  readonly spec: JobSpec;
  readonly hostname: string;
  /** The stages before this one; the sandbox adds its own. */
  readonly timeline: Timeline;
}

export type SandboxState =
  | { readonly phase: 'starting' }
  | { readonly phase: 'running' }
  | {
      readonly phase: 'exited';
      readonly exitCode: number;
      readonly signal?: number;
      readonly oomKilled: boolean;
      /** Why, when it was not the workload's own doing. */
      readonly reason?: Reason;
    }
  | { readonly phase: 'failed'; readonly reason: Reason };

export type EndState = Extract<SandboxState, { phase: 'exited' | 'failed' }>;

export type ExecEnd =
  | {
      readonly kind: 'exit';
      readonly exitCode: number;
      readonly signal?: number;
      readonly oomKilled: boolean;
    }
  | { readonly kind: 'error'; readonly reason: Reason };

/** Where an exec's output goes. The guest is held back until the promise resolves; a rejection ends the exec. */
export type ExecOutput = (fd: OutputFd, bytes: Buffer) => Promise<void>;

export interface Exec {
  /** Resolves when the guest has executed it, or has said that it cannot (then `ended` tells why). */
  readonly started: Promise<void>;
  /** Resolves once, after all output was taken. */
  readonly ended: Promise<ExecEnd>;
  /** Waits while the process does not read. */
  writeStdin(bytes: Buffer): Promise<void>;
  endStdin(): void;
  signal(signal: number): void;
  resize(rows: number, columns: number): void;
  /** Kills it, whatever it is doing, and lets go of it. */
  close(): void;
}

export interface Sandbox {
  readonly id: string;
  readonly request: SandboxRequest;
  readonly state: SandboxState;
  readonly timeline: Timeline;
  /** What the workload wrote. Complete (`finished`) before the state says that it ended. */
  readonly output: OutputLog;
  /** Resolves when it has ended, its end is on the disk, and no process, mount or cgroup of it is left. */
  readonly ended: Promise<void>;
  /** Ends it: its StopSignal, then SIGKILL after the grace. Again with a shorter grace: the shorter one counts. */
  stop(graceMs: number): void;
  /** Ends it now. Resolves as `ended` does. */
  kill(reason?: Reason): Promise<void>;
  /** Throws `state.wrong` unless it runs. */
  signal(signal: number): void;
  /** For the workload's standard input. Waits while it does not read; throws `state.wrong` when it has none or ended. */
  writeStdin(bytes: Buffer): Promise<void>;
  endStdin(): void;
  resize(rows: number, columns: number): void;
  /** Throws `state.wrong` unless it runs, `limit.exceeded` when 64 run already. */
  exec(spec: ExecSpec, output: ExecOutput): Exec;
}
