// cloister inspect: an object as the API has it, always as JSON.
import { ApiError } from '@cloister/client/apiError.ts';
import type { CloisterClient } from '@cloister/client/client.ts';
import { defineCommand } from '../command.ts';
import { attempt } from '../failure.ts';
import { resolveTarget } from '../resolve.ts';

export const inspect = defineCommand({
  usage: 'inspect JOB|ALLOCATION|NODE',
  options: {},
  min: 1,
  max: 1,
  details: 'Prints a job with its allocations, one allocation, or (for operators) a node.',
  example: 'cloister inspect web',
  async run(context, _values, [key = '']) {
    const client = await context.client();
    await context.document(await attempt(`inspect ${key}`, () => find(client, key)));
    return 0;
  },
});

async function find(client: CloisterClient, key: string): Promise<unknown> {
  if (key.startsWith('nod-')) return await client.getNode(key);
  try {
    const { job, allocations, named } = await resolveTarget(client, key);
    return named ?? { job, allocations };
  } catch (error) {
    if (!(error instanceof ApiError) || error.code !== 'not-found') throw error;
    // A node has a name too. A tenant may not ask for nodes, and is told about the job.
    return await client.getNode(key).catch(() => Promise.reject(error));
  }
}
