// cloister stop: end jobs in their own time.

import { ApiError } from '@cloister/client/apiError.ts';
import { optional, parseDurationMs } from '../arguments.ts';
import { defineCommand } from '../command.ts';
import { eachTarget } from '../eachTarget.ts';
import { resolveJob, waitUntilEnded } from '../resolve.ts';

/** Beyond the grace: for the kill, and for the news to travel. */
const SLACK_MS = 30_000;
const MAX_GRACE_MS = 600_000;

export const stop = defineCommand({
  usage: 'stop [OPTIONS] JOB...',
  options: {
    grace: {
      type: 'string',
      value: 'TIME',
      help: "From the stop signal to the kill: 500ms, 10s. Default: the job's own.",
    },
  },
  min: 1,
  max: 1000,
  details: 'Waits until they have ended.',
  example: 'cloister stop --grace 30s web',
  async run(context, values, keys) {
    const graceMs = optional('--grace', values.grace, parseDurationMs);
    const client = await context.client();
    return await eachTarget(context, 'stop', keys, async (key) => {
      const { job } = await resolveJob(client, key);
      const stopping = await client.stopJob(job.id, graceMs === undefined ? {} : { graceMs });
      const waitMs = Math.min(MAX_GRACE_MS, graceMs ?? job.spec.stopGraceMs) + SLACK_MS;
      if (!(await waitUntilEnded(client, stopping, waitMs))) {
        throw new ApiError(
          'unavailable',
          `It was told to stop and has not ended within ${Math.round(waitMs / 1000)} s.`,
          { hint: `Look at its node, or try: cloister kill ${key}` },
        );
      }
      return { id: job.id, name: job.name };
    });
  },
});
