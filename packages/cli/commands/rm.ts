// cloister rm: remove jobs, with their logs.
import { defineCommand } from '../command.ts';
import { eachTarget } from '../eachTarget.ts';
import { resolveJob } from '../resolve.ts';

export const rm = defineCommand({
  usage: 'rm [OPTIONS] JOB...',
  options: { force: { type: 'boolean', short: 'f', help: 'Kill them first.' } },
  min: 1,
  max: 1000,
  example: 'cloister rm web\ncloister rm -f $(cloister ps -aq)',
  async run(context, values, keys) {
    const client = await context.client();
    return await eachTarget(context, 'remove', keys, async (key) => {
      const { job } = await resolveJob(client, key);
      await client.removeJob(job.id, values.force === true ? { force: true } : {});
      return { id: job.id, name: job.name };
    });
  },
});
