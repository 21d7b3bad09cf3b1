// Waiting, always with a limit.
import type { Clock } from './clock.ts';

/** Rejects with `makeError()` when the promise takes longer than `timeoutMs`. The promise itself goes on. */
export async function withTimeout<Value>(
  promise: Promise<Value>,
  timeoutMs: number,
  makeError: () => Error,
): Promise<Value> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(makeError()), timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Delays that double from `firstMs` up to `maxMs`, each with up to 50% of jitter so that many do not return at once. */
export function backoffMs(
  attempt: number,
  firstMs: number,
  maxMs: number,
  random: () => number = Math.random,
): number {
  const base = Math.min(maxMs, firstMs * 2 ** Math.min(attempt, 30));
  return base * (0.5 + random() / 2);
}

/** Asks again and again until `check` gives something, or throws `makeError()` at the limit. For what has no event. */
export async function poll<Value>(
  check: () => Promise<Value | undefined> | Value | undefined,
  options: { clock: Clock; everyMs: number; timeoutMs: number; makeError: () => Error; signal?: AbortSignal },
): Promise<Value> {
  const deadline = options.clock.monotonic() + options.timeoutMs;
  for (;;) {
    const value = await check();
    if (value !== undefined) return value;
    if (options.clock.monotonic() >= deadline) throw options.makeError();
    await options.clock.sleep(options.everyMs, options.signal);
  }
}
