// cloister run: an image in a machine of its own, in the foreground as `docker run`, or in the background.
import type { JobSpecInput } from '@cloister/client/routes.ts';
import { parseCpuMilli, parseMiB } from '@cloister/model/units.ts';
import { optional, parseCount, parseDurationMs, parseEnv } from '../arguments.ts';
import { defineCommand, type Values } from '../command.ts';
import type { Context } from '../context.ts';
import { attempt, UsageError } from '../failure.ts';

const OPTIONS = {
  detach: { type: 'boolean', short: 'd', help: "Do not wait: print the job's id and leave it running." },
  interactive: {
    type: 'boolean',
    short: 'i',
    help: 'Send our standard input to the workload; with -d, keep its input open for who attaches later.',
  },
  tty: { type: 'boolean', short: 't', help: 'Give the workload a terminal.' },
  rm: { type: 'boolean', help: 'Remove the job with its logs when it has ended.' },
  env: {
    type: 'string',
    short: 'e',
    multiple: true,
    value: 'NAME[=VALUE]',
    help: 'Set a variable; without a value, to what it is here.',
  },
  name: { type: 'string', value: 'NAME', help: 'Name the job. Default: a name is invented.' },
  cpu: { type: 'string', value: 'CPUS', help: 'CPUs: 0.5, 2, 500m. Default 1.' },
  memory: { type: 'string', short: 'm', value: 'SIZE', help: 'Memory: 512m, 2g. Default 256m.' },
  disk: { type: 'string', value: 'SIZE', help: 'Scratch disk: 512m, 10g. Default 1g.' },
  entrypoint: { type: 'string', value: 'PROGRAM', help: "Run this instead of the image's entrypoint." },
  user: {
    type: 'string',
    short: 'u',
    value: 'USER[:GROUP]',
    help: 'Run as this user of the image, by name or number.',
  },
  workdir: { type: 'string', short: 'w', value: 'PATH', help: 'Run in this directory.' },
  count: {
    type: 'string',
    value: 'N',
    help: 'Run this many instances; more than one needs --detach. Default 1.',
  },
  'stop-grace': {
    type: 'string',
    value: 'TIME',
    help: 'From the stop signal to the kill: 500ms, 10s. Default 10s.',
  },
} as const;

export const run = defineCommand({
  usage: 'run [OPTIONS] IMAGE [[--] COMMAND [ARGUMENT...]]',
  options: OPTIONS,
  min: 1,
  max: Number.POSITIVE_INFINITY,
  isPrefix: true,
  failureCode: 125,
  details: `Exits as the workload does: with its code, or 128 + N when signal N ended it. 125: we failed. 126: its command
cannot be executed. 127: its command does not exist.
An interrupt (Ctrl-C) goes to the workload; a third one within 2 s kills it. With --tty every key goes to the
workload; there are no keys to detach with. When the reader of our output goes away, the workload is killed.
With --json, output comes as lines of JSON with the bytes in base64.`,
  example:
    'cloister run --rm alpine echo hello\ncloister run --rm -it --memory 512m alpine sh\ncloister run -d --name web --count 3 nginx',
  async run(context, values, args) {
    const spec = toSpec(context, values, args);
    if (values.detach === true) return await runDetached(context, spec);
    if (values.tty === true && context.json) throw new UsageError('--json and --tty do not go together.');
    if (values.tty === true && values.interactive === true && !context.inIsTerminal) {
      throw new UsageError('-it needs a terminal as standard input; leave out -t.');
    }
    const { runInForeground } = await import('../runInForeground.ts');
    return await runInForeground(context, spec);
  },
});

async function runDetached(context: Context, spec: JobSpecInput): Promise<number> {
  const client = await context.client();
  const created = await attempt(`run ${spec.image}`, () => client.createJob(spec));
  if (context.json) await context.document(created);
  else await context.line(created.job.id);
  return 0;
}

function toSpec(
  context: Context,
  values: Values<typeof OPTIONS>,
  [image = '', ...command]: readonly string[],
): JobSpecInput {
  const cpuMilli = optional('--cpu', values.cpu, parseCpuMilli);
  const memoryMiB = optional('--memory', values.memory, parseMiB);
  const diskMiB = optional('--disk', values.disk, parseMiB);
  const count = optional('--count', values.count, parseCount) ?? 1;
  const stopGraceMs = optional('--stop-grace', values['stop-grace'], parseDurationMs);
  if (count > 1 && values.detach !== true)
    throw new UsageError('--count of more than one needs --detach: there is one foreground only.');
  return {
    image,
    env: parseEnv(values.env, context.env),
    tty: values.tty === true,
    stdin: values.interactive === true,
    removeWhenDone: values.rm === true,
    count,
    resources: {
      ...(cpuMilli === undefined ? {} : { cpuMilli }),
      ...(memoryMiB === undefined ? {} : { memoryMiB }),
      ...(diskMiB === undefined ? {} : { diskMiB }),
    },
    ...(command.length === 0 ? {} : { command }),
    ...(values.name === undefined ? {} : { name: values.name }),
    ...(values.entrypoint === undefined
      ? {}
      : { entrypoint: values.entrypoint === '' ? [] : [values.entrypoint] }),
    ...(values.user === undefined ? {} : { user: values.user }),
    ...(values.workdir === undefined ? {} : { workingDir: values.workdir }),
    ...(stopGraceMs === undefined ? {} : { stopGraceMs }),
  };
}
