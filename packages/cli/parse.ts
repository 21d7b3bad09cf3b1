// From the words of a command line to a command's options and arguments, with errors that say what to write instead.
import { parseArgs } from 'node:util';
import { COMMON_OPTIONS, type Command, type Options } from './command.ts';
import { UsageError } from './failure.ts';

export interface Parsed {
  readonly values: Record<string, string | boolean | string[] | undefined>;
  readonly args: readonly string[];
}

export function parseCommandLine(command: Command, words: readonly string[]): Parsed {
  const options: Options = { ...command.options, ...COMMON_OPTIONS };
  const split = command.isPrefix ? firstArgument(words, options) : words.length;
  const { values, positionals } = parseWords(words.slice(0, split), options, command.isPrefix !== true);
  const rest = words.slice(split);
  // "run IMAGE -- COMMAND": the marker belongs to us, whatever follows does not.
  const args =
    command.isPrefix && rest[1] === '--' ? [rest[0] ?? '', ...rest.slice(2)] : [...positionals, ...rest];
  if (values['help'] !== true) checkCount(command, args.length);
  return { values, args };
}

function parseWords(
  words: readonly string[],
  options: Options,
  allowPositionals: boolean,
): { values: Parsed['values']; positionals: string[] } {
  const config = Object.fromEntries(
    Object.entries(options).map(([name, { type, short, multiple }]) => [
      name,
      { type, ...(short ? { short } : {}), ...(multiple ? { multiple } : {}) },
    ]),
  );
  try {
    const { values, positionals } = parseArgs({
      args: [...words],
      options: config,
      allowPositionals,
      strict: true,
    });
    return { values: values as Parsed['values'], positionals };
  } catch (error) {
    throw new UsageError(explain(error as NodeJS.ErrnoException, words, options));
  }
}

/** The index of the first word that is no option and no option's value: where the image, or the job, stands. */
function firstArgument(words: readonly string[], options: Options): number {
  for (let i = 0; i < words.length; i++) {
    const word = words[i] ?? '';
    if (word === '--') return Math.min(i + 1, words.length);
    if (!word.startsWith('-') || word === '-') return i;
    if (takesNextWord(word, options)) i++;
  }
  return words.length;
}

function takesNextWord(word: string, options: Options): boolean {
  if (word.startsWith('--')) return !word.includes('=') && options[word.slice(2)]?.type === 'string';
  for (let i = 1; i < word.length; i++) {
    const option = Object.values(options).find(({ short }) => short === word[i]);
    if (option?.type === 'string') return i === word.length - 1; // -eA=b holds its value
  }
  return false;
}

function explain(error: NodeJS.ErrnoException, words: readonly string[], options: Options): string {
  const first = error.message.split(/\. |\n/)[0] ?? error.message;
  if (error.code !== 'ERR_PARSE_ARGS_UNKNOWN_OPTION') return `${first.replace(/\.$/, '')}.`;
  const name = /'(-[^' ]+)/.exec(error.message)?.[1] ?? words[0] ?? '';
  const near = nearest(name.replace(/^-+/, ''), Object.keys(options));
  return `There is no option ${name}.${near === undefined ? '' : ` Did you mean --${near}?`}`;
}

function checkCount(command: Command, count: number): void {
  if (count < command.min) throw new UsageError(`Something is missing; write: cloister ${command.usage}`);
  if (count > command.max)
    throw new UsageError(`That is one word too many; write: cloister ${command.usage}`);
}

/** The name that is at most two slips of a finger away. */
export function nearest(text: string, names: readonly string[]): string | undefined {
  const distances = names
    .map((name) => ({ name, distance: distance(text.slice(0, 40), name) }))
    .sort((a, b) => a.distance - b.distance);
  const best = distances[0];
  return best && best.distance <= Math.min(2, text.length - 1) ? best.name : undefined;
}

/** Levenshtein's distance, by rows. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const swap = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(swap, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
