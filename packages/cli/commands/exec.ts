// cloister exec: one more process in a running sandbox.
import { ApiError } from '@cloister/client/apiError.ts';
import type { CloisterClient } from '@cloister/client/client.ts';
import type { ExecSpecInput } from '@cloister/client/routes.ts';
import type { Allocation } from '@cloister/model/job.ts';
import { parseEnv } from '../arguments.ts';
import { defineCommand } from '../command.ts';
import { terminalSize } from '../context.ts';
import { attempt, BrokenPipe, Failure, UsageError } from '../failure.ts';
import { runForeground } from '../foreground.ts';
import { meantAllocations, resolveTarget, type Target } from '../resolve.ts';
import { SignalGate } from '../signals.ts';

const SIGKILL = 9;
const START_TIMEOUT_MS = 60_000;
const ON_THE_WAY: ReadonlySet<string> = new Set(['placed', 'pulling', 'starting']);
const START_CODES: Readonly<Record<string, number>> = {
  'sandbox.command-not-executable': 126,
  'sandbox.command-not-found': 127,
};

export const exec = defineCommand({
  usage: 'exec [OPTIONS] JOB|ALLOCATION [--] COMMAND [ARGUMENT...]',
  options: {
    interactive: { type: 'boolean', short: 'i', help: 'Send our standard input to the process.' },
    tty: { type: 'boolean', short: 't', help: 'Give the process a terminal.' },
    env: {
      type: 'string',
      short: 'e',
      multiple: true,
      value: 'NAME[=VALUE]',
      help: 'Set a variable; without a value, to what it is here.',
    },
    user: { type: 'string', short: 'u', value: 'USER[:GROUP]', help: 'Run as this user of the image.' },
    workdir: { type: 'string', short: 'w', value: 'PATH', help: 'Run in this directory.' },
  },
  min: 2,
  max: Number.POSITIVE_INFINITY,
  isPrefix: true,
  details: `Of a job with several instances, the first that runs is meant; name an allocation to mean another.
One that is just being started is waited for, up to a minute.
Exits as the process does. 126: the command cannot be executed. 127: it does not exist. 1: we failed.`,
  example: 'cloister exec web -- ps aux\ncloister exec -it web sh',
  async run(context, values, [key = '', ...command]) {
    if (values.tty === true && context.json) throw new UsageError('--json and --tty do not go together.');
    if (values.tty === true && values.interactive === true && !context.inIsTerminal) {
      throw new UsageError('-it needs a terminal as standard input; leave out -t.');
    }
    const input = values.interactive === true;
    const tty = values.tty === true;
    const spec: ExecSpecInput = {
      command,
      env: parseEnv(values.env, context.env),
      tty,
      stdin: input,
      ...(tty ? terminalSize() : {}),
      ...(values.user === undefined ? {} : { user: values.user }),
      ...(values.workdir === undefined ? {} : { workingDir: values.workdir }),
    };
    const client = await context.client();
    const what = `run ${command[0] ?? ''} in ${key}`;
    const workload = await attempt(what, async () => {
      const { id } = await whenRunning(client, await resolveTarget(client, key), key);
      return await client.exec(id, spec);
    });
    const gate = new SignalGate();
    try {
      const exit = await runForeground(context, workload, gate, {
        input,
        tty,
        onInsist: () => workload.signal(SIGKILL),
      });
      if (context.json) await context.item({ type: 'exit', ...exit });
      return exit.exitCode;
    } catch (error) {
      if (error instanceof BrokenPipe) {
        workload.signal(SIGKILL);
        throw error;
      }
      throw new Failure(`could not ${what}`, error, START_CODES[(error as ApiError).code]);
    } finally {
      gate.close();
      workload.close();
    }
  },
});

/** The first that runs. Of those that are on their way, the first, when it does: "run -d" returns before it runs. */
async function whenRunning(client: CloisterClient, target: Target, key: string): Promise<Allocation> {
  const meant = meantAllocations(target);
  const running = meant.find(({ state }) => state === 'running');
  if (running) return running;
  const coming = meant.find(({ state }) => ON_THE_WAY.has(state));
  const come = coming && (await whenStarted(client, coming));
  if (come?.state === 'running') return come;
  const states =
    come?.state ?? ([...new Set(meant.map(({ state }) => state))].join(', ') || target.job.state);
  throw new ApiError('state.wrong', `${key} is not running: it is ${states}.`, {
    hint: `Look at it with "cloister inspect ${key}"; "cloister ps -a" lists all.`,
  });
}

/** As it is when it runs or has ended, or after START_TIMEOUT_MS. */
async function whenStarted(client: CloisterClient, coming: Allocation): Promise<Allocation> {
  const signal = AbortSignal.timeout(START_TIMEOUT_MS);
  let allocation = coming;
  try {
    while (ON_THE_WAY.has(allocation.state)) {
      const { id, version } = allocation;
      allocation = await client.getAllocation(id, { waitVersion: version }, { signal });
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  return allocation;
}
