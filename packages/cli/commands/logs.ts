// cloister logs: what a workload wrote, its standard error to ours.
import type { CloisterClient } from '@cloister/client/client.ts';
import type { Query } from '@cloister/client/routes.ts';
import { optional, parseCount } from '../arguments.ts';
import { defineCommand } from '../command.ts';
import type { Context } from '../context.ts';
import { attempt } from '../failure.ts';
import { LinePrefixer } from '../linePrefixer.ts';
import { meantAllocations, resolveTarget } from '../resolve.ts';

export const logs = defineCommand({
  usage: 'logs [OPTIONS] JOB|ALLOCATION',
  options: {
    follow: { type: 'boolean', short: 'f', help: 'Go on until the workload ends.' },
    tail: { type: 'string', short: 'n', value: 'N', help: 'The last N lines only.' },
    timestamps: { type: 'boolean', help: 'Put the time before each line.' },
  },
  min: 1,
  max: 1,
  details:
    "Of a job with several instances, all are printed, each line with the instance's number before it.",
  example: 'cloister logs -f --tail 100 web',
  async run(context, values, [key = '']) {
    const tailLines = optional('--tail', values.tail, parseCount);
    const client = await context.client();
    const query = {
      ...(values.follow === true ? { follow: true } : {}),
      ...(tailLines === undefined ? {} : { tailLines }),
    };
    await attempt(`print the logs of ${key}`, async () => {
      const target = await resolveTarget(client, key);
      const allocations = meantAllocations(target);
      const print = (id: string, index: number | undefined) =>
        printLogs(context, client, id, query, index, values.timestamps === true);
      if (allocations.length === 1 && allocations[0]) await print(allocations[0].id, undefined);
      else if (values.follow === true)
        await Promise.all(allocations.map(({ id, index }) => print(id, index)));
      else for (const { id, index } of allocations) await print(id, index);
    });
    return 0;
  },
});

async function printLogs(
  context: Context,
  client: CloisterClient,
  id: string,
  query: Query<'logs'>,
  index: number | undefined,
  timestamps: boolean,
): Promise<void> {
  const isPlain = index === undefined && !timestamps;
  const prefixers = { stdout: new LinePrefixer(), stderr: new LinePrefixer() };
  for await (const { at, stream, data } of client.logs(id, query)) {
    if (context.json) {
      await context.item({ allocation: id, at, stream, data });
      continue;
    }
    const output = stream === 'stdout' ? context.out : context.err;
    const bytes = Buffer.from(data, 'base64');
    const prefix = `${index === undefined ? '' : `${index} | `}${timestamps ? `${new Date(at).toISOString()} ` : ''}`;
    await output.write(isPlain ? bytes : prefixers[stream].add(bytes, prefix));
  }
}
