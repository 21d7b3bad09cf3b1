// At most so many at once. The others wait: within a group in their order, and the groups take turns, so that who wants
// much does not hold up who wants little.
import { CloisterError } from '@cloister/model/errors.ts';

export interface LimiterOptions {
  /** Of one group, at once, even when nobody else wants any: what runs is not stopped for who comes next. Default: all. */
  readonly perGroup?: number;
  /** Of one group. Default 1024. */
  readonly maxWaiting?: number;
}

export class Limiter {
  readonly #perGroup: number;
  readonly #maxWaiting: number;
  readonly #running = new Map<string, number>();
  /** No group's list is empty. The first group has its turn next. */
  readonly #waiting = new Map<string, (() => void)[]>();
  #free: number;

  constructor(atOnce: number, { perGroup = atOnce, maxWaiting = 1024 }: LimiterOptions = {}) {
    this.#free = atOnce;
    this.#perGroup = perGroup;
    this.#maxWaiting = maxWaiting;
  }

  /** Throws 'limit.exceeded' when too many of the group wait already. */
  async run<Value>(work: () => Promise<Value>, signal?: AbortSignal, group = ''): Promise<Value> {
    await this.#enter(group, signal);
    try {
      return await work();
    } finally {
      this.#leave(group);
    }
  }

  async #enter(group: string, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    if (this.#mayRun(group)) {
      this.#take(group);
      return;
    }
    const queue = this.#waiting.get(group) ?? [];
    if (queue.length >= this.#maxWaiting)
      throw new CloisterError('limit.exceeded', `${queue.length} others are waiting on this node already.`);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const cancel = (): void => {
      const at = queue.indexOf(resolve);
      if (at >= 0) queue.splice(at, 1);
      if (queue.length === 0 && this.#waiting.get(group) === queue) this.#waiting.delete(group);
      reject(signal?.reason);
    };
    queue.push(resolve);
    this.#waiting.set(group, queue);
    signal?.addEventListener('abort', cancel, { once: true });
    await promise.finally(() => signal?.removeEventListener('abort', cancel));
  }

  #leave(group: string): void {
    this.#free += 1;
    const left = (this.#running.get(group) ?? 1) - 1;
    if (left > 0) this.#running.set(group, left);
    else this.#running.delete(group);
    for (const [next, queue] of this.#waiting) {
      if (!this.#mayRun(next)) continue;
      const start = queue.shift();
      this.#waiting.delete(next);
      if (queue.length > 0) this.#waiting.set(next, queue); // behind the others
      this.#take(next);
      start?.();
      return;
    }
  }

  #mayRun(group: string): boolean {
    return this.#free > 0 && (this.#running.get(group) ?? 0) < this.#perGroup;
  }

  #take(group: string): void {
    this.#free -= 1;
    this.#running.set(group, (this.#running.get(group) ?? 0) + 1);
  }
}
