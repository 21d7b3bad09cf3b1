// Aligned tables that fit the terminal. Cells that are too long end in an ellipsis; nothing wraps.
import { type Colour, paint, printable } from './format.ts';

export interface Column {
  readonly title: string;
  /** May be cut when the terminal is narrow. The others, ids and numbers, only when nothing else helps. */
  readonly isElastic?: boolean;
  readonly isRight?: boolean;
}
export type Cell = string | { readonly text: string; readonly colour: Colour };

const GAP = '  ';
const MIN_WIDTH = 6;

/** Lines with their line ends. `width`: of the terminal in columns; undefined: no limit. */
export function renderTable(
  columns: readonly Column[],
  rows: readonly (readonly Cell[])[],
  options: { width?: number | undefined; colour: boolean },
): string {
  const texts = rows.map((row) => columns.map((_, i) => printable(textOf(row[i]))));
  const widths = columns.map((column, i) =>
    Math.max(widthOf(column.title), ...texts.map((row) => widthOf(row[i] ?? ''))),
  );
  if (options.width !== undefined) shrink(widths, columns, options.width);
  const line = (cells: readonly string[], colourOf: (i: number) => Colour) => {
    const parts = cells.map((cell, i) => {
      const text = truncate(cell, widths[i] ?? 0);
      const padding = ' '.repeat(Math.max(0, (widths[i] ?? 0) - widthOf(text)));
      const painted = paint(text, colourOf(i), options.colour);
      if (columns[i]?.isRight) return padding + painted;
      return i === cells.length - 1 ? painted : painted + padding;
    });
    return `${parts.join(GAP).trimEnd()}\n`;
  };
  const head = line(
    columns.map((column) => column.title),
    () => 'bold',
  );
  return head + texts.map((cells, r) => line(cells, (i) => colourOf(rows[r]?.[i]))).join('');
}

const textOf = (cell: Cell | undefined): string => (typeof cell === 'string' ? cell : (cell?.text ?? ''));
const colourOf = (cell: Cell | undefined): Colour => (typeof cell === 'object' ? cell.colour : 'none');

/** Takes from the widest elastic column first, then from any, down to MIN_WIDTH, then to 1, until the line fits. */
function shrink(widths: number[], columns: readonly Column[], width: number): void {
  const room = Math.max(columns.length, width - GAP.length * (columns.length - 1));
  const steps = [
    { floor: MIN_WIDTH, elasticOnly: true },
    { floor: MIN_WIDTH, elasticOnly: false },
    { floor: 1, elasticOnly: false },
  ];
  for (const { floor, elasticOnly } of steps) {
    for (let over = sum(widths) - room; over > 0; over--) {
      let widest = -1;
      widths.forEach((value, i) => {
        if (value > floor && (!elasticOnly || columns[i]?.isElastic) && value > (widths[widest] ?? 0))
          widest = i;
      });
      if (widest < 0) break;
      widths[widest] = (widths[widest] ?? 0) - 1;
    }
  }
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

export function truncate(text: string, width: number): string {
  if (widthOf(text) <= width) return text;
  let result = '';
  let used = 0;
  for (const character of text) {
    used += widthOf(character);
    if (used > width - 1) break;
    result += character;
  }
  return `${result}…`;
}

const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;

/** Columns that a terminal gives a text: two for East Asian wide characters, none for combining marks. */
export function widthOf(text: string): number {
  let width = 0;
  for (const character of text)
    width += /\p{Mn}|\p{Me}|\p{Cf}/u.test(character) ? 0 : WIDE.test(character) ? 2 : 1;
  return width;
}
