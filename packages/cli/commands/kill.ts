// cloister kill: end jobs at once, or send a signal to their first processes.
import { optional } from '../arguments.ts';
import { defineCommand } from '../command.ts';
import { eachTarget } from '../eachTarget.ts';
import { resolveJob, waitUntilEnded } from '../resolve.ts';
import { parseSignal } from '../signals.ts';

/** The order is given when the API answers; this is only for "rm" to work right after. */
const WAIT_MS = 10_000;

export const kill = defineCommand({
  usage: 'kill [OPTIONS] JOB...',
  options: {
    signal: {
      type: 'string',
      short: 's',
      value: 'SIGNAL',
      help: 'Send this (TERM, SIGHUP, 10) to the workload instead, and leave its machine alone.',
    },
  },
  min: 1,
  max: 1000,
  details: 'Without --signal the machines are killed: nothing in them can delay it.',
  example: 'cloister kill web\ncloister kill -s HUP web',
  async run(context, values, keys) {
    const signal = optional('--signal', values.signal, parseSignal);
    const client = await context.client();
    return await eachTarget(context, 'kill', keys, async (key) => {
      const { job } = await resolveJob(client, key);
      if (signal !== undefined) await client.signalJob(job.id, signal);
      else await waitUntilEnded(client, await client.killJob(job.id), WAIT_MS);
      return { id: job.id, name: job.name, signal: signal ?? null };
    });
  },
});
