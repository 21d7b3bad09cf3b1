// Work that several callers want at once and that is done once: the first begins it, the others join, and it is
// cancelled when nobody waits for it any more.
export class SharedWork<Value, Progress = never> {
  readonly #running = new Map<string, Job<Value, Progress>>();

  get size(): number {
    return this.#running.size;
  }

  /** Rejects with the signal's reason as soon as it is aborted; the work goes on when another caller waits. */
  async do(
    key: string,
    work: (signal: AbortSignal, report: (progress: Progress) => void) => Promise<Value>,
    caller: {
      signal?: AbortSignal | undefined;
      onProgress?: ((progress: Progress) => void) | undefined;
    } = {},
  ): Promise<Value> {
    caller.signal?.throwIfAborted();
    const job = this.#running.get(key) ?? this.#begin(key, work);
    const waiter: Waiter<Progress> = { onProgress: caller.onProgress };
    job.waiters.add(waiter);
    const cancelled = Promise.withResolvers<never>();
    const cancel = (): void => {
      job.waiters.delete(waiter);
      if (job.waiters.size > 0) {
        cancelled.reject(caller.signal?.reason);
        return;
      }
      // The last one waits until everything is cleaned up: "cancelled" then means that nothing is left. Who comes
      // meanwhile begins anew.
      if (this.#running.get(key) === job) this.#running.delete(key);
      job.controller.abort(caller.signal?.reason);
    };
    caller.signal?.addEventListener('abort', cancel, { once: true });
    try {
      return await Promise.race([job.result, cancelled.promise]);
    } finally {
      job.waiters.delete(waiter);
      caller.signal?.removeEventListener('abort', cancel);
    }
  }

  /** Cancels everything and waits for its end. */
  async close(reason: unknown): Promise<void> {
    const jobs = [...this.#running.values()];
    for (const job of jobs) job.controller.abort(reason);
    await Promise.allSettled(jobs.map((job) => job.result));
  }

  #begin(
    key: string,
    work: (signal: AbortSignal, report: (progress: Progress) => void) => Promise<Value>,
  ): Job<Value, Progress> {
    const controller = new AbortController();
    const waiters = new Set<Waiter<Progress>>();
    const report = (progress: Progress): void => {
      for (const waiter of waiters) waiter.onProgress?.(progress);
    };
    // Not at once: who begins it hears its first report too.
    const result = Promise.resolve().then(async () => await work(controller.signal, report));
    const job: Job<Value, Progress> = { controller, waiters, result };
    this.#running.set(key, job);
    const forget = (): void => {
      if (this.#running.get(key) === job) this.#running.delete(key);
    };
    result.then(forget, forget);
    return job;
  }
}

interface Waiter<Progress> {
  readonly onProgress: ((progress: Progress) => void) | undefined;
}

interface Job<Value, Progress> {
  readonly controller: AbortController;
  readonly waiters: Set<Waiter<Progress>>;
  readonly result: Promise<Value>;
}
