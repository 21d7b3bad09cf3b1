// The same act on several jobs: each is tried, each failure is printed, and the exit code says whether all went well.
import type { Context } from './context.ts';
import { attempt, BrokenPipe, renderFailure } from './failure.ts';

/** `act` returns what to print as JSON; without --json the key is printed, as the user wrote it. */
export async function eachTarget(
  context: Context,
  verb: string,
  keys: readonly string[],
  act: (key: string) => Promise<unknown>,
): Promise<number> {
  let code = 0;
  const results: unknown[] = [];
  for (const key of keys) {
    try {
      results.push(await attempt(`${verb} ${key}`, () => act(key)));
      if (!context.json) await context.line(key);
    } catch (error) {
      if (error instanceof BrokenPipe) throw error;
      code = 1;
      await context.err.write(renderFailure(error, context.json));
    }
  }
  if (context.json) await context.document(results);
  return code;
}
