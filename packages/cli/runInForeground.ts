// The foreground of `cloister run`: make the job, say what it waits for, be its terminal, pass on how it ended.
import { ApiError, reasonToError } from '@cloister/client/apiError.ts';
import type { CloisterClient } from '@cloister/client/client.ts';
import type { JobSpecInput } from '@cloister/client/routes.ts';
import type { Exit, WorkloadStream } from '@cloister/client/workloadStream.ts';
import type { Allocation, Job } from '@cloister/model/job.ts';
import type { Context } from './context.ts';
import { attempt, BrokenPipe, Failure } from './failure.ts';
import { runForeground } from './foreground.ts';
import { SignalGate } from './signals.ts';
import { isEndedState } from './states.ts';
import { StatusLine } from './statusLine.ts';

const FAILED_CODE = 125;
const START_CODES: Readonly<Record<string, number>> = {
  'sandbox.command-not-executable': 126,
  'sandbox.command-not-found': 127,
};
/** From a failure that the allocation's record shows to the same failure on its stream, which has more to tell. */
const FAILURE_GRACE_MS = 3000;
/** From our kill to the exit that it causes. */
const KILL_WAIT_MS = 5000;
const KILLED: Exit = { exitCode: 137, signal: 9 };

/** A signal of ours before the workload ran. */
class Interrupted extends Error {
  readonly signal: number;
  constructor(signal: number) {
    super(`signal ${signal}`);
    this.signal = signal;
  }
}

interface Run {
  readonly context: Context;
  readonly client: CloisterClient;
  readonly job: Job;
  readonly allocation: Allocation;
  readonly gate: SignalGate;
}

export async function runInForeground(context: Context, spec: JobSpecInput): Promise<number> {
  const what = `run ${spec.image}`;
  const gate = new SignalGate();
  const stopper = new AbortController();
  gate.handler = (signal) => stopper.abort(new Interrupted(signal));
  const status = new StatusLine(context);
  try {
    const client = await context.client();
    status.set(`asking for ${spec.image}`);
    const created = await attempt(what, () => client.createJob(spec));
    const allocation = created.allocations[0];
    if (!allocation)
      throw new ApiError('internal', `Job ${created.job.name} was made without an allocation.`);
    if (context.json) await context.item({ type: 'created', ...created });
    const run: Run = { context, client, job: created.job, allocation, gate };
    const exit = await followToEnd(run, what, status, stopper.signal);
    if (context.json) await context.item({ type: 'exit', ...exit });
    return exit.exitCode;
  } finally {
    await status.clear();
    gate.close();
  }
}

async function followToEnd(run: Run, what: string, status: StatusLine, stop: AbortSignal): Promise<Exit> {
  let workload: WorkloadStream | undefined;
  try {
    workload = await start(run, status, stop);
    await status.clear();
    return await beItsTerminal(run, workload);
  } catch (error) {
    await status.clear();
    if (error instanceof Interrupted) return await giveUp(run, error.signal);
    if (error instanceof BrokenPipe) {
      await kill(run);
      throw error;
    }
    const exit = await exitFromRecord(run, error);
    if (exit) return exit;
    throw new Failure(`could not ${what}`, error, START_CODES[(error as ApiError).code] ?? FAILED_CODE);
  } finally {
    workload?.close();
  }
}

/** Attached and started. Throws why it never will, or Interrupted. */
async function start(run: Run, status: StatusLine, stop: AbortSignal): Promise<WorkloadStream> {
  const { client, allocation, job } = run;
  const watching = new AbortController();
  const signal = AbortSignal.any([stop, watching.signal]);
  const running = watchUntilRunning(run, status, signal);
  running.catch(() => {}); // attaching may fail first, and then nobody waits for it
  try {
    const workload = await client.attach(allocation.id, { stdin: job.spec.stdin }, { signal: stop });
    await Promise.race([workload.started, running]);
    return workload;
  } finally {
    watching.abort(new Error('no longer of interest'));
  }
}

/**
 * Shows each state that the allocation passes through. Resolves when it runs, or ran: a silent workload may say
 * nothing on its stream. Rejects when it ended without having run. Never settles when it cannot be watched: then the
 * stream will say what is wrong.
 */
async function watchUntilRunning(
  { client, allocation, job }: Run,
  status: StatusLine,
  signal: AbortSignal,
): Promise<void> {
  let seen = allocation;
  while (!isEndedState(seen.state) && seen.state !== 'running') {
    status.set(describe(seen, job));
    try {
      seen = await client.getAllocation(allocation.id, { waitVersion: seen.version }, { signal });
    } catch {
      return await new Promise(() => {});
    }
  }
  if (seen.state === 'running' || seen.state === 'exited') return;
  await new Promise((resolve) => setTimeout(resolve, FAILURE_GRACE_MS));
  const unknown = { code: 'sandbox.start-failed', message: `The allocation ${seen.id} is ${seen.state}.` };
  throw reasonToError(seen.reason ?? unknown);
}

function describe(allocation: Allocation, job: Job): string {
  const { state, reason } = allocation;
  if (state === 'pulling') return reason?.message ?? `pulling ${job.spec.image}`;
  const doing = state === 'pending' ? 'placing' : state === 'placed' ? 'handing over to a node' : 'starting';
  return reason ? `${doing}: ${reason.message}` : doing;
}

async function beItsTerminal(run: Run, workload: WorkloadStream): Promise<Exit> {
  const { context, gate, job } = run;
  const killed = Promise.withResolvers<Exit>();
  const onInsist = () => {
    void kill(run);
    setTimeout(() => killed.resolve(KILLED), KILL_WAIT_MS);
  };
  const ended = runForeground(context, workload, gate, {
    input: job.spec.stdin,
    tty: job.spec.tty,
    onInsist,
  });
  return await Promise.race([ended, killed.promise]);
}

/** Interrupted before it ran: nobody waits for it any more. */
async function giveUp(run: Run, signal: number): Promise<Exit> {
  await attempt(`give up job ${run.job.name}`, async () => {
    if (run.job.spec.removeWhenDone) await run.client.removeJob(run.job.id, { force: true });
    else await run.client.killJob(run.job.id);
  });
  return { exitCode: 128 + signal, signal };
}

async function kill(run: Run): Promise<void> {
  await run.client.killJob(run.job.id).catch(() => {}); // it may have ended, and been removed, a moment ago
}

/** The stream broke, but the workload ended: its exit code is known all the same. */
async function exitFromRecord(run: Run, error: unknown): Promise<Exit | undefined> {
  if (!(error instanceof ApiError) || error.code !== 'unavailable') return undefined;
  const allocation = await run.client.getAllocation(run.allocation.id).catch(() => undefined);
  if (allocation?.state !== 'exited' || allocation.exitCode === undefined) return undefined;
  await run.context.err.write(
    `cloister: the connection was lost; the end of the output may be missing (cloister logs ${run.job.name})\n`,
  );
  return { exitCode: allocation.exitCode };
}
