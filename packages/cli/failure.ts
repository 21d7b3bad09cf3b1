// How this program fails: by the user's command line, by something it tried, or because its reader went away.
import { CloisterError, describeError, ERROR_CODES, type FieldError } from '@cloister/model/errors.ts';
import { printable } from './format.ts';

/** A wrong command line. Exit code 2. */
export class UsageError extends Error {}

/** Something that was tried and failed; `cause` says why. */
export class Failure extends Error {
  readonly exitCode: number | undefined;
  constructor(what: string, cause: unknown, exitCode?: number) {
    super(what, { cause });
    this.exitCode = exitCode;
  }
}

/** Whoever read our output went away, as head does. Nothing to report. */
export class BrokenPipe extends Error {}

/** Runs `act`; when it fails, says that it was `what` that could not be done. */
export async function attempt<Value>(what: string, act: () => Promise<Value>): Promise<Value> {
  try {
    return await act();
  } catch (error) {
    if (error instanceof BrokenPipe || error instanceof UsageError || error instanceof Failure) throw error;
    throw new Failure(`could not ${what}`, error);
  }
}

interface Report {
  readonly what: string;
  readonly why: string;
  readonly code: string;
  readonly hint?: string;
  readonly fields: readonly FieldError[];
}

/** "cloister: what failed", why, each wrong field, and a hint, a line each; or all of it as JSON. */
export function renderFailure(error: unknown, asJson: boolean): string {
  const report = toReport(error);
  if (asJson) return `${JSON.stringify({ error: report })}\n`;
  const lines = [report.why, ...report.fields.map((field) => `${field.path}: ${field.message}`)].filter(
    (line) => line !== '',
  );
  if (report.hint !== undefined) lines.push(`hint: ${report.hint}`);
  return `cloister: ${printable(report.what)}\n${lines.map((line) => `  ${printable(line)}\n`).join('')}`;
}

function toReport(error: unknown): Report {
  const isFailure = error instanceof Failure;
  const cause = isFailure ? error.cause : error;
  const why = describeError(cause);
  const what = isFailure ? error.message : why;
  if (!(cause instanceof CloisterError))
    return { what, why: isFailure ? why : '', code: 'internal', fields: [] };
  const own = (cause as { hint?: unknown }).hint;
  const hint = typeof own === 'string' ? own : ERROR_CODES[cause.code].hint;
  return { what, why: isFailure ? why : '', code: cause.code, hint, fields: cause.fields };
}
