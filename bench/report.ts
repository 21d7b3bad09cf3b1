// What every benchmark leaves: a table for people, and bench/out/NAME.json for programs.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

export interface Figure {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** What was asked for, as a limit; undefined where nothing was. */
  readonly goal?: { readonly below: number } | { readonly atLeast: number };
}

/** Prints the figures and writes them. What misses its goal is said, not thrown. */
export async function report(name: string, figures: readonly Figure[]): Promise<void> {
  const width = Math.max(...figures.map((figure) => figure.name.length));
  console.log(`\n${name}`);
  for (const figure of figures) {
    const verdict = isMet(figure) === undefined ? '' : isMet(figure) ? 'met' : 'MISSED';
    console.log(
      `  ${figure.name.padEnd(width)}  ${formatValue(figure.value).padStart(10)} ${figure.unit.padEnd(6)} ${goalText(figure)} ${verdict}`.trimEnd(),
    );
  }
  const folder = join(import.meta.dirname, 'out');
  await mkdir(folder, { recursive: true });
  const rows = figures.map((figure) => ({
    name: figure.name,
    value: figure.value,
    unit: figure.unit,
    goal: goalText(figure) || null,
    met: isMet(figure) ?? null,
  }));
  await writeFile(join(folder, `${name}.json`), `${JSON.stringify(rows, null, 2)}\n`);
  console.log(`\nwritten to bench/out/${name}.json`);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const [low, high] = [sorted[Math.ceil(middle) - 1], sorted[Math.floor(middle)]];
  if (low === undefined || high === undefined) throw new Error('the median of nothing');
  return (low + high) / 2;
}

function isMet({ goal, value }: Figure): boolean | undefined {
  if (!goal) return undefined;
  return 'below' in goal ? value < goal.below : value >= goal.atLeast;
}

function goalText({ goal, unit }: Figure): string {
  if (!goal) return '';
  return 'below' in goal ? `< ${goal.below} ${unit}` : `>= ${goal.atLeast} ${unit}`;
}

const formatValue = (value: number): string =>
  Math.abs(value) >= 100 ? Math.round(value).toLocaleString('en') : value.toFixed(1);
