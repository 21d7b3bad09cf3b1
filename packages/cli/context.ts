// What every command is given: where to print, what the terminal can do, and the cluster, connected when first asked.
import { isatty, WriteStream } from 'node:tty';
import type { CloisterClient } from '@cloister/client/client.ts';
import { Output } from './output.ts';
import { type Cell, type Column, renderTable } from './table.ts';

export interface Context {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly json: boolean;
  readonly out: Output;
  readonly err: Output;
  readonly outIsTerminal: boolean;
  readonly errIsTerminal: boolean;
  readonly inIsTerminal: boolean;
  readonly colour: boolean;
  now(): number;
  client(): Promise<CloisterClient>;
  /** Prints a document: JSON when asked for. */
  document(value: unknown): Promise<void>;
  /** Prints one object of a stream as a line of JSON. */
  item(value: unknown): Promise<void>;
  line(text: string): Promise<void>;
  table(columns: readonly Column[], rows: readonly (readonly Cell[])[]): Promise<void>;
}

export function createContext(json: boolean): Context {
  const env = process.env;
  const out = new Output(1);
  const outIsTerminal = isatty(1);
  const colour = outIsTerminal && !env['NO_COLOR'] && env['TERM'] !== 'dumb';
  let client: Promise<CloisterClient> | undefined;
  return {
    env,
    json,
    out,
    err: new Output(2),
    outIsTerminal,
    errIsTerminal: isatty(2) && env['TERM'] !== 'dumb',
    inIsTerminal: isatty(0),
    colour,
    now: () => Date.now(),
    client: () => {
      client ??= import('./connect.ts').then(({ connect }) => connect(env));
      return client;
    },
    document: (value) => out.write(`${JSON.stringify(value, null, 2)}\n`),
    item: (value) => out.write(`${JSON.stringify(value)}\n`),
    line: (text) => out.write(`${text}\n`),
    table: (columns, rows) =>
      out.write(
        renderTable(columns, rows, { width: outIsTerminal ? terminalSize().columns : undefined, colour }),
      ),
  };
}

/** Of whichever standard stream is a terminal; 24 by 80 when none is. */
export function terminalSize(): { rows: number; columns: number } {
  for (const stream of [process.stdout, process.stderr]) {
    if (stream instanceof WriteStream && stream.columns > 0) {
      const [columns, rows] = stream.getWindowSize();
      return { rows, columns };
    }
  }
  return { rows: 24, columns: 80 };
}
