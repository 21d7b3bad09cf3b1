// The program: from its arguments to an exit code.

import type { Command } from './command.ts';
import { ALIASES, COMMANDS } from './commandList.ts';
import type { Context } from './context.ts';
import { createContext } from './context.ts';
import { BrokenPipe, Failure, renderFailure, UsageError } from './failure.ts';
import { nearest, type Parsed, parseCommandLine } from './parse.ts';

const USAGE_CODE = 2;
/** What a shell reports of a program that SIGPIPE ended. */
const BROKEN_PIPE_CODE = 141;

/** `words`: what follows the program's name. Nothing is thrown: failures are printed on standard error. */
export async function runProgram(words: readonly string[]): Promise<number> {
  const [first, ...rest] = words[0]?.startsWith('-') ? globalOption(words) : words;
  let context = createContext(false);
  let name = first ?? 'help';
  try {
    if (Object.hasOwn(ALIASES, name)) name = ALIASES[name] ?? name;
    const command = await load(name);
    const parsed = parse(command, name, rest);
    context = createContext(parsed.values['json'] === true);
    return await runCommand(context, command, name, parsed);
  } catch (error) {
    return await report(context, name, error);
  }
}

/** "cloister --version", "cloister --help" and "cloister -h" are commands to those who expect them. */
function globalOption(words: readonly string[]): readonly string[] {
  if (words[0] === '--version' || words[0] === '-v') return ['version', ...words.slice(1)];
  return words[0] === '--help' || words[0] === '-h' ? ['help', ...words.slice(1)] : words;
}

async function load(name: string): Promise<Command> {
  const listing = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (listing) return await listing.load();
  const near = nearest(name, Object.keys(COMMANDS));
  throw new UsageError(
    `There is no command "${name.slice(0, 40)}".${near ? ` Did you mean "${near}"?` : ''}`,
  );
}

function parse(command: Command, name: string, words: readonly string[]): Parsed {
  const { values, args } = parseCommandLine(command, words);
  return name === 'help' && values['help'] === true
    ? { values: { ...values, help: false }, args: ['help'] }
    : { values, args };
}

async function runCommand(
  context: Context,
  command: Command,
  name: string,
  { values, args }: Parsed,
): Promise<number> {
  if (values['help'] === true) {
    const { commandHelp } = await import('./help.ts');
    await context.out.write(commandHelp(name, command));
    return 0;
  }
  try {
    return await command.run(context, values as never, args);
  } catch (error) {
    if (error instanceof UsageError || error instanceof BrokenPipe) throw error;
    const code = (error instanceof Failure ? error.exitCode : undefined) ?? command.failureCode ?? 1;
    await context.err.write(renderFailure(error, context.json));
    return code;
  }
}

async function report(context: Context, name: string, error: unknown): Promise<number> {
  if (error instanceof BrokenPipe) return BROKEN_PIPE_CODE;
  const isUsage = error instanceof UsageError;
  const help = Object.hasOwn(COMMANDS, name) ? `cloister ${name} --help` : 'cloister help';
  const text = isUsage ? `cloister: ${error.message}\n  hint: ${help}\n` : renderFailure(error, false);
  await context.err.write(text).catch(() => {}); // there is nobody left to tell
  return isUsage ? USAGE_CODE : 1;
}
