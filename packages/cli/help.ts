// Help texts, from the commands' own definitions.
import { COMMON_OPTIONS, type Command, type OptionSpec } from './command.ts';
import { COMMANDS } from './commandList.ts';

export function commandHelp(name: string, command: Command): string {
  const options = Object.entries<OptionSpec>({ ...command.options, ...COMMON_OPTIONS });
  const left = options.map(
    ([option, { short, value }]) => `${short ? `-${short}, ` : '    '}--${option}${value ? ` ${value}` : ''}`,
  );
  const width = Math.max(...left.map((text) => text.length));
  const lines = options.map(([, { help }], i) => `  ${(left[i] ?? '').padEnd(width)}  ${help}`);
  const details = command.details === undefined ? '' : `\n${command.details}\n`;
  const example = command.example
    .split('\n')
    .map((line) => `  ${line}`)
    .join('\n');
  return `Usage: cloister ${command.usage}\n\n${COMMANDS[name]?.summary ?? ''}\n${details}\nOptions:\n${lines.join('\n')}\n\nExample:\n${example}\n`;
}

export function generalHelp(): string {
  const width = Math.max(...Object.keys(COMMANDS).map((name) => name.length));
  const lines = Object.entries(COMMANDS).map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`);
  return `Usage: cloister COMMAND [OPTIONS] [ARGUMENTS]

Runs Docker images, each in a machine of its own.

Commands:
${lines.join('\n')}

"cloister COMMAND --help" tells more. A job is named by its name, its id or the beginning of its id.
The cluster and credential come from CLOISTER_CONFIG (a file), or CLOISTER_URL, CLOISTER_CA_FILE and CLOISTER_TOKEN.
`;
}
