// A sandbox from its start, or its adoption, to its end. Everything that can end it meets in #end(): the first reason
// counts, and whatever had been made is taken down in one order. Its state goes one way only.
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { withTimeout } from '@cloister/kit/wait.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { Timeline } from '@cloister/model/job.ts';
import type { Reason } from '@cloister/model/schema.ts';
import type { ExecSpec } from '@cloister/model/stream.ts';
import { GuestChannel, requestPayload } from './channel.ts';
import { type GuestMessage, GuestProtocolError, OUTPUT_WINDOW_BYTES } from './frames.ts';
import { GuestConsole } from './guestConsole.ts';
import { failureOf, GuestExecs } from './guestExec.ts';
import type { JailProcess } from './jailProcess.ts';
import { Machine, type MachineParts } from './machine.ts';
import { execRequest, signalNumber, startRequest } from './ociSpec.ts';
import type { OutputLog } from './outputLog.ts';
import type { EndState, Exec, ExecOutput, Sandbox, SandboxRequest, SandboxState } from './sandbox.ts';
import type { MachineRecord, SandboxFolder } from './sandboxFolder.ts';
import { StdinPipe } from './stdinPipe.ts';
import { takeOutput, takeOutputEnd } from './takeOutput.ts';
import { bootTimeout, isHangUp, whyMachineEnded } from './whyMachineEnded.ts';

const SIGKILL = 9;
/** From the end of the channel until the console must have said all that it will. */
const LAST_WORDS_TIMEOUT_MS = 200;

export interface LiveSandboxParts extends MachineParts {
  readonly clock: Clock;
  readonly logger: Logger;
  readonly bootTimeoutMs: number;
  readonly onChange: (sandbox: Sandbox) => void;
}

export class LiveSandbox implements Sandbox {
  readonly id: string;
  readonly request: SandboxRequest;
  readonly output: OutputLog;
  readonly uid: number;
  /** Nothing runs as its user any more. */
  isGone = false;
  readonly #parts: LiveSandboxParts;
  readonly #folder: SandboxFolder;
  readonly #machine: Machine;
  readonly #stdin: StdinPipe;
  readonly #execs = new GuestExecs();
  readonly #aborted = new AbortController();
  readonly #ended = Promise.withResolvers<void>();
  #state: SandboxState = { phase: 'starting' };
  #timeline: Timeline;
  #process: JailProcess | undefined;
  #channel: GuestChannel | undefined;
  #console: GuestConsole | undefined;
  /** Making the machine and talking to the guest until it runs; settles before anything is taken down. */
  #starting: Promise<void> = Promise.resolve();
  #ending: Promise<void> | undefined;
  #workloadEnd: EndState | undefined;
  /** START was said, or may have been. */
  #hasStarted = false;
  #hasBooted = false;
  #isAdopted = false;
  #stopAtMs = Number.POSITIVE_INFINITY;
  #isLetGo = false;

  constructor(
    parts: LiveSandboxParts,
    of: {
      readonly request: SandboxRequest;
      readonly uid: number;
      readonly folder: SandboxFolder;
      readonly output: OutputLog;
    },
  ) {
    this.#parts = parts;
    this.id = of.request.id;
    this.request = of.request;
    this.uid = of.uid;
    this.#folder = of.folder;
    this.output = of.output;
    this.#timeline = of.request.timeline;
    this.#machine = new Machine(parts, this.id, of.folder);
    this.#stdin = new StdinPipe({
      send: async (offset, bytes) => await this.#channel?.sendStdin(0, offset, bytes),
      sendEof: (offset) => this.#channel?.sendStdinEof(0, offset),
    });
  }

  get state(): SandboxState {
    return this.#state;
  }

  get timeline(): Timeline {
    return this.#timeline;
  }

  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Resolves when a start or an adoption has come to something: the guest answered, or it failed. */
  get settled(): Promise<void> {
    return this.#starting;
  }

  start(): void {
    this.#starting = this.#boot().catch((error: unknown) => this.#startFailed(error));
  }

  /** Goes on with a machine that an agent before this one started. */
  adopt(machine: MachineRecord): void {
    this.#isAdopted = true;
    this.#process = machine.process;
    this.#timeline = { ...machine.timeline, ...this.#timeline };
    this.#starting = this.#talk(true).catch((error: unknown) => this.#startFailed(error));
  }

  async #boot(): Promise<void> {
    const { image, spec } = this.request;
    const request = startRequest(this.request);
    requestPayload(request); // throws, as the line above, before anything is made
    await this.#folder.make();
    const [machine, recorded] = await Promise.allSettled([
      this.#machine.start({
        imagePath: image.blockPath,
        resources: spec.resources,
        uid: this.uid,
        signal: this.#aborted.signal,
      }),
      this.#folder.writeRecord({ request: this.request, uid: this.uid }),
    ]);
    if (machine.status === 'rejected') throw machine.reason;
    this.#process = machine.value;
    if (recorded.status === 'rejected') throw recorded.reason;
    this.#reach('jailReadyAt');
    const record = { process: machine.value, timeline: this.#timeline };
    await Promise.all([this.#folder.writeMachine(record), this.#talk(false)]);
    this.#hasStarted = true;
    this.#channel?.start(request);
  }

  async #talk(isAdopted: boolean): Promise<void> {
    const { driver, bootTimeoutMs: timeoutMs } = this.#parts;
    const { signal } = this.#aborted;
    const { runPath } = this.#folder;
    this.#hasStarted = isAdopted;
    this.#hasBooted = isAdopted;
    this.#console = new GuestConsole(await driver.connectConsole(runPath, timeoutMs, signal));
    const channel = new GuestChannel(await driver.connectChannel(runPath, timeoutMs, signal), {
      resumedProcesses: () => this.#resumedProcesses(),
      message: (message) => this.#take(message),
    });
    this.#channel = channel;
    void channel.closed.then((error) => this.#channelClosed(error));
    if (signal.aborted) channel.close();
    await withTimeout(channel.ready, timeoutMs, () => bootTimeout(timeoutMs));
    await this.#machine.limit(this.request.spec.resources);
    this.#hasBooted = true;
    if (!isAdopted) this.#reach('bootedAt');
  }

  #resumedProcesses() {
    if (!this.#hasStarted) return [];
    const [stdoutAck, stderrAck] = [this.output.written(1), this.output.written(2)];
    const [stdoutLimit, stderrLimit] = [stdoutAck + OUTPUT_WINDOW_BYTES, stderrAck + OUTPUT_WINDOW_BYTES];
    return [{ process: 0, stdoutAck, stdoutLimit, stderrAck, stderrLimit }];
  }

  /** Every word of the guest. A throw ends the channel, and the sandbox with it. */
  #take(message: GuestMessage): void {
    if (this.#ending) return;
    switch (message.type) {
      case 'hello':
        this.#takeHello(message);
        return;
      case 'stats':
        return;
      default:
        if (message.process !== 0) this.#execs.take(message);
        else this.#takeWorkload(message);
    }
  }

  #takeHello({ processes }: Extract<GuestMessage, { type: 'hello' }>): void {
    const workload = processes.find(({ process }) => process === 0);
    if (!this.#hasStarted) return;
    // Adopted. The agent before this one may have ended before it said START.
    if (!workload || workload.state === 'none') {
      this.#channel?.start(startRequest(this.request));
      return;
    }
    this.#stdin.resume(workload.stdinConsumed, workload.stdinLimit);
    if (workload.state !== 'starting') this.#runs();
  }

  #takeWorkload(message: Exclude<GuestMessage, { type: 'hello' | 'stats' }>): void {
    const { clock } = this.#parts;
    switch (message.type) {
      case 'started':
        this.#runs();
        return;
      case 'data':
        takeOutput(this.output, message, clock.now());
        if (this.#timeline.firstOutputAt === undefined && !this.#isAdopted)
          this.#reach('firstOutputAt', true);
        return;
      case 'eof':
        takeOutputEnd(this.output, message, clock.now());
        return;
      case 'ack':
        this.#stdin.allow(message.limit);
        return;
      case 'exit': {
        if (!this.output.ended(1) || !this.output.ended(2))
          throw new GuestProtocolError('it exited before its output ended');
        const { exitCode, signal, oomKilled } = message;
        this.#workloadEnd = {
          phase: 'exited',
          exitCode,
          ...(signal === undefined ? {} : { signal }),
          oomKilled,
        };
        void this.#end(this.#workloadEnd);
        return;
      }
      case 'failed':
        void this.#end({ phase: 'failed', reason: failureOf(message.code, message.text) });
    }
  }

  /** For OutputLog: bytes are safe, the guest may forget them and send more. */
  outputWritten(fd: 1 | 2, offset: number): void {
    this.#channel?.acknowledge(0, fd, offset, offset + OUTPUT_WINDOW_BYTES);
  }

  /** For OutputLog: what cannot be kept must not be lost silently. */
  outputFailed(error: Error): void {
    const message = `The output could not be written to the node's disk: ${describeError(error)}.`;
    void this.#end({ phase: 'failed', reason: { code: 'node.disk-full', message } });
  }

  #runs(): void {
    if (this.#state.phase !== 'starting') return;
    this.#state = { phase: 'running' };
    if (!this.#isAdopted) this.#reach('startedAt'); // the agent before this one said when
    this.#parts.onChange(this);
  }

  #reach(stage: keyof Timeline, isNews = false): void {
    this.#timeline = { ...this.#timeline, [stage]: this.#parts.clock.now() };
    if (isNews) this.#parts.onChange(this);
  }

  stop(graceMs: number): void {
    if (this.#ending) return;
    if (this.#state.phase === 'starting') return void this.kill();
    const { clock } = this.#parts;
    const stopAtMs = clock.monotonic() + graceMs;
    if (stopAtMs >= this.#stopAtMs) return;
    const isFirst = this.#stopAtMs === Number.POSITIVE_INFINITY;
    this.#stopAtMs = stopAtMs;
    if (isFirst) this.#channel?.signal(0, signalNumber(this.request.image.config.stopSignal));
    clock.sleep(graceMs, this.#aborted.signal).then(
      () => void this.kill(),
      () => {}, // it ended in time
    );
  }

  async kill(reason?: Reason): Promise<void> {
    await this.#end({
      phase: 'exited',
      exitCode: 128 + SIGKILL,
      signal: SIGKILL,
      oomKilled: false,
      ...(reason ? { reason } : {}),
    });
  }

  signal(signal: number): void {
    this.#requireRunning().signal(0, signal);
  }

  async writeStdin(bytes: Buffer): Promise<void> {
    if (!this.request.spec.stdin)
      throw new CloisterError('state.wrong', 'This job was started without standard input.');
    await this.#stdin.write(bytes);
  }

  endStdin(): void {
    this.#stdin.end();
  }

  resize(rows: number, columns: number): void {
    this.#channel?.resize(0, rows, columns);
  }

  exec(spec: ExecSpec, output: ExecOutput): Exec {
    return this.#execs.start(this.#requireRunning(), execRequest(this.request, spec), output);
  }

  #requireRunning(): GuestChannel {
    const channel = this.#channel;
    if (this.#state.phase !== 'running' || this.#ending || !channel)
      throw new CloisterError('state.wrong', `The sandbox is not running: it is ${this.#state.phase}.`);
    return channel;
  }

  async #startFailed(error: unknown): Promise<void> {
    if (this.#ending || this.#isLetGo) return;
    const code = error instanceof CloisterError ? error.code : 'sandbox.start-failed';
    // It hung up before it was ready: its console knows better.
    if (code === 'sandbox.vmm-died' || isHangUp(error)) return await this.#machineEnded();
    const console =
      code === 'sandbox.boot-timeout' ? ` The console's end: ${this.#console?.lastWords()}` : '';
    void this.#end({ phase: 'failed', reason: { code, message: `${describeError(error)}${console}` } });
  }

  async #channelClosed(error: Error | undefined): Promise<void> {
    if (this.#ending || this.#isLetGo) return;
    if (error instanceof GuestProtocolError) {
      const message = `The sandbox was ended: ${error.message}.`;
      void this.#end({ phase: 'failed', reason: { code: 'sandbox.guest-protocol', message } });
      return;
    }
    await this.#machineEnded();
  }

  /** Nobody asked for it: why did it end? */
  async #machineEnded(): Promise<void> {
    const console = this.#console;
    if (console)
      await withTimeout(console.closed, LAST_WORDS_TIMEOUT_MS, () => new Error('late')).catch(() => {});
    if (this.#ending || this.#isLetGo) return;
    const { memoryMiB } = this.request.spec.resources;
    const reason = await whyMachineEnded({
      hasBooted: this.#hasBooted,
      memoryMiB,
      console,
      folder: this.#folder.path,
    });
    void this.#end({ phase: 'failed', reason });
  }

  /** Takes everything down. What the workload did itself is on the disk before its machine is given up. */
  #end(state: EndState): Promise<void> {
    this.#ending ??= this.#takeDown(state).catch((error: unknown) => {
      // Something of it cannot be removed. It is said loudly, and tried again by the next start of the agent.
      this.#parts.logger.error(
        { sandbox: this.id, error: describeError(error) },
        'a sandbox left something behind',
      );
      this.#finish(state);
    });
    return this.#ending;
  }

  async #takeDown(state: EndState): Promise<void> {
    this.#aborted.abort(new CloisterError('state.wrong', 'The sandbox is being ended.'));
    const isWorkloadsOwnEnd = state === this.#workloadEnd;
    if (!isWorkloadsOwnEnd && this.#process) await this.#machine.kill(this.#process);
    this.#stdin.close();
    this.#execs.endAll(); // with the workload, everything in its container is killed
    await this.output.finish();
    this.#timeline = { ...this.#timeline, endedAt: this.#parts.clock.now() };
    await this.#recordEnd(state);
    this.#channel?.close();
    this.#console?.close();
    await this.#starting;
    await this.#machine.destroy();
    this.isGone = true;
    this.#finish(state);
  }

  async #recordEnd(state: EndState): Promise<void> {
    try {
      await this.#folder.writeEnd({ state, timeline: this.#timeline });
    } catch (error) {
      // A full disk. The machine goes all the same, and the control plane is told by this agent.
      this.#parts.logger.error({ sandbox: this.id, error: describeError(error) }, 'an end was not recorded');
    }
  }

  #finish(state: EndState): void {
    this.#state = state;
    this.#parts.onChange(this);
    this.#ended.resolve();
  }

  /** Leaves the sandbox to the next agent. */
  async letGo(): Promise<void> {
    if (this.#ending) return await this.#ending;
    this.#isLetGo = true;
    this.#aborted.abort(new CloisterError('unavailable', 'The agent is closing.'));
    this.#channel?.close();
    this.#console?.close();
    this.#stdin.close();
    await this.#starting;
    await this.output.finish();
  }
}
