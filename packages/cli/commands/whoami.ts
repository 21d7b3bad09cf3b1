// cloister whoami: whose credential this is.
import { defineCommand } from '../command.ts';
import { attempt } from '../failure.ts';

export const whoami = defineCommand({
  usage: 'whoami',
  options: {},
  min: 0,
  max: 0,
  example: 'cloister whoami',
  async run(context) {
    const client = await context.client();
    const answer = await attempt('ask whose credential this is', () => client.whoami());
    if (context.json) await context.document(answer);
    else await context.line(`${answer.tenant.name} (${answer.scope})`);
    return 0;
  },
});
