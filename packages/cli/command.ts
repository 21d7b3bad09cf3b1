// What a command is: its words, its options, and the function that does it.
import type { Context } from './context.ts';

export interface OptionSpec {
  readonly type: 'boolean' | 'string';
  readonly short?: string;
  /** May be given more than once. */
  readonly multiple?: true;
  /** What stands for the value in the help: "SIZE". */
  readonly value?: string;
  readonly help: string;
}
export type Options = Readonly<Record<string, OptionSpec>>;

export type Values<O extends Options> = {
  readonly [Name in keyof O]?:
    | (O[Name] extends { type: 'boolean' } ? boolean : O[Name] extends { multiple: true } ? string[] : string)
    | undefined;
};

export interface Command<O extends Options = Options> {
  /** Without the program's name: "run [OPTIONS] IMAGE [COMMAND...]". */
  readonly usage: string;
  readonly options: O;
  /** How many arguments it takes. */
  readonly min: number;
  readonly max: number;
  /** Options end at the first argument: what follows belongs to the workload. */
  readonly isPrefix?: boolean;
  /** More for the help. */
  readonly details?: string;
  /** Lines of a short example. */
  readonly example: string;
  /** Exit code when we fail, not the workload. Default 1. */
  readonly failureCode?: number;
  /** Returns the exit code. */
  run(context: Context, values: Values<O>, args: readonly string[]): Promise<number>;
}

/** Checks the options' types against their use. */
export function defineCommand<const O extends Options>(command: Command<O>): Command {
  return command as unknown as Command;
}

/** Of every command. */
export const COMMON_OPTIONS = {
  json: { type: 'boolean', help: 'Print JSON: one document, or one line an object for what streams.' },
  help: { type: 'boolean', short: 'h', help: 'Print this help.' },
} as const satisfies Options;
