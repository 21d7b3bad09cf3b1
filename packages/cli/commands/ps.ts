// cloister ps: the jobs.
import { defineCommand } from '../command.ts';
import { attempt } from '../failure.ts';
import { formatAge, formatCommand, jobState, shortId } from '../format.ts';

export const ps = defineCommand({
  usage: 'ps [OPTIONS]',
  options: {
    all: { type: 'boolean', short: 'a', help: 'Also jobs that ended.' },
    quiet: { type: 'boolean', short: 'q', help: 'Print ids only.' },
  },
  min: 0,
  max: 0,
  example: 'cloister ps -a\ncloister rm $(cloister ps -aq)',
  async run(context, values) {
    const client = await context.client();
    const all = (await attempt('list jobs', () => client.listJobs())).jobs;
    const jobs = values.all === true ? all : all.filter(({ job }) => job.state !== 'done');
    if (context.json) await context.document({ jobs });
    else if (values.quiet === true) await context.out.write(jobs.map(({ job }) => `${job.id}\n`).join(''));
    else {
      const now = context.now();
      const rows = jobs.map((record) => [
        record.job.name,
        shortId(record.job.id),
        record.job.spec.image,
        formatCommand([...(record.job.spec.entrypoint ?? []), ...(record.job.spec.command ?? [])]) || '-',
        jobState(record, now),
        formatAge(record.job.createdAt, now),
      ]);
      await context.table(
        [
          { title: 'NAME' },
          { title: 'ID' },
          { title: 'IMAGE', isElastic: true },
          { title: 'COMMAND', isElastic: true },
          { title: 'STATE' },
          { title: 'CREATED' },
        ],
        rows,
      );
    }
    return 0;
  },
});
