// Values of options, from text to what the API takes.
import { CloisterError } from '@cloister/model/errors.ts';
import { UsageError } from './failure.ts';

/** Applies `parse` when there is a value; a value that it refuses is the user's mistake, named by its option. */
export function optional<Value>(
  option: string,
  text: string | undefined,
  parse: (text: string) => Value,
): Value | undefined {
  if (text === undefined) return undefined;
  try {
    return parse(text);
  } catch (error) {
    if (error instanceof CloisterError || error instanceof UsageError)
      throw new UsageError(`${option}: ${error.message}`);
    throw error;
  }
}

export function parseCount(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new UsageError(`"${text.slice(0, 40)}" is not a whole number.`);
  return Number(text);
}

const UNIT_MS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** "500ms", "10s", "2m", "1h", "7d"; a bare number is seconds. */
export function parseDurationMs(text: string): number {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)?$/.exec(text);
  if (!match?.[1])
    throw new UsageError(`"${text.slice(0, 40)}" is not a time; write it like 500ms, 10s or 2m.`);
  return Math.round(Number(match[1]) * (UNIT_MS[match[2] ?? 's'] ?? 1000));
}

/** "NAME=value", or "NAME" for the value in our own environment; without one it is left out, as docker does. */
export function parseEnv(
  items: readonly string[] | undefined,
  own: Readonly<Record<string, string | undefined>>,
): Record<string, string> {
  const env: Record<string, string> = {};
  for (const item of items ?? []) {
    const at = item.indexOf('=');
    const name = at < 0 ? item : item.slice(0, at);
    if (name === '')
      throw new UsageError(`--env: "${item.slice(0, 40)}" has no name; write it like NAME=value.`);
    const value = at < 0 ? own[name] : item.slice(at + 1);
    if (value !== undefined) env[name] = value;
  }
  return env;
}
