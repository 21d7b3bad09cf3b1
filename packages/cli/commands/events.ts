// cloister events: what happened.
import { optional, parseCount } from '../arguments.ts';
import { defineCommand } from '../command.ts';
import { attempt } from '../failure.ts';
import { type Colour, paint, printable, shortId } from '../format.ts';

const COLOURS: Readonly<Record<string, Colour>> = {
  failed: 'red',
  lost: 'red',
  down: 'red',
  suspect: 'yellow',
  running: 'green',
  ready: 'green',
};

export const events = defineCommand({
  usage: 'events [OPTIONS]',
  options: {
    follow: { type: 'boolean', short: 'f', help: 'Go on with what happens from now on.' },
    after: { type: 'string', value: 'REVISION', help: 'Later than this revision only.' },
  },
  min: 0,
  max: 0,
  example: 'cloister events -f',
  async run(context, values) {
    const after = optional('--after', values.after, parseCount);
    const client = await context.client();
    const query = {
      ...(values.follow === true ? { follow: true } : {}),
      ...(after === undefined ? {} : { after }),
    };
    await attempt('print events', async () => {
      for await (const event of client.events(query)) {
        if (context.json) {
          await context.item(event);
          continue;
        }
        const colour = COLOURS[event.type.split('.')[1] ?? ''] ?? 'none';
        const words = [
          new Date(event.at).toISOString(),
          paint(event.type.padEnd(20), colour, context.colour),
          shortId(event.subject),
        ];
        await context.line(
          [...words, printable(event.name ?? ''), printable(event.message ?? '')].filter(Boolean).join('  '),
        );
      }
    });
    return 0;
  },
});
