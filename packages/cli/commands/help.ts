// cloister help: of all commands, or of one.

import { defineCommand } from '../command.ts';
import { ALIASES, COMMANDS } from '../commandList.ts';
import { UsageError } from '../failure.ts';
import { commandHelp, generalHelp } from '../help.ts';

export const help = defineCommand({
  usage: 'help [COMMAND]',
  options: {},
  min: 0,
  max: 1,
  example: 'cloister help run',
  async run(context, _values, [word]) {
    const name = word === undefined ? undefined : (ALIASES[word] ?? word);
    const listing = name !== undefined && Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
    if (name !== undefined && !listing) throw new UsageError(`There is no command "${name.slice(0, 40)}".`);
    await context.out.write(
      name !== undefined && listing ? commandHelp(name, await listing.load()) : generalHelp(),
    );
    return 0;
  },
});
