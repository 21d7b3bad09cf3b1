// A sandbox that had ended before this agent was started: its output and its end, and nothing to do any more.
import { CloisterError } from '@cloister/model/errors.ts';
import type { Timeline } from '@cloister/model/job.ts';
import type { OutputLog } from './outputLog.ts';
import type { Exec, Sandbox, SandboxRequest, SandboxState } from './sandbox.ts';
import type { EndRecord } from './sandboxFolder.ts';

export class EndedSandbox implements Sandbox {
  readonly id: string;
  readonly request: SandboxRequest;
  readonly state: SandboxState;
  readonly timeline: Timeline;
  readonly output: OutputLog;
  readonly ended = Promise.resolve();

  constructor(request: SandboxRequest, end: EndRecord, output: OutputLog) {
    this.id = request.id;
    this.request = request;
    this.state = end.state;
    this.timeline = end.timeline;
    this.output = output;
  }

  stop(): void {}

  async kill(): Promise<void> {}

  signal(): void {
    throw this.#hasEnded();
  }

  async writeStdin(): Promise<void> {
    throw this.#hasEnded();
  }

  endStdin(): void {}

  resize(): void {}

  exec(): Exec {
    throw this.#hasEnded();
  }

  #hasEnded(): CloisterError {
    return new CloisterError('state.wrong', `The sandbox is not running: it is ${this.state.phase}.`);
  }
}
