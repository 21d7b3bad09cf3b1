// cloister version: of this program, and of the cluster when asked.
import { defineCommand } from '../command.ts';
import { attempt } from '../failure.ts';

export const VERSION = '0.1.0';

export const version = defineCommand({
  usage: 'version [OPTIONS]',
  options: { server: { type: 'boolean', help: 'Ask the control plane for its version too.' } },
  min: 0,
  max: 0,
  example: 'cloister version --server',
  async run(context, values) {
    const server =
      values.server === true
        ? (
            await attempt('ask for the version of the control plane', async () =>
              (await context.client()).health(),
            )
          ).version
        : undefined;
    if (context.json)
      await context.document({ client: VERSION, ...(server === undefined ? {} : { server }) });
    else await context.line(`cloister ${VERSION}${server === undefined ? '' : `, control plane ${server}`}`);
    return 0;
  },
});
