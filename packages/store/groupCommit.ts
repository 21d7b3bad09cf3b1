// One line that all writes stand in. Whatever came while the last transaction was being synced goes into the next
// one together, so that many callers share one fsync, and nobody waits for a timer.
import { CloisterError } from '@cloister/model/errors.ts';

const JOBS_PER_COMMIT = 512;
const BYTES_PER_COMMIT = 8 * 1_048_576;
const MAX_WAITING_JOBS = 16_384;
const MAX_WAITING_BYTES = 64 * 1_048_576;

interface Job {
  readonly bytes: number;
  /** Runs inside the transaction. */
  readonly work: () => void;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export class GroupCommit {
  readonly #transact: (body: () => void) => Promise<void>;
  readonly #beforeCommit: () => void;
  readonly #afterCommit: () => void;
  #waiting: Job[] = [];
  #waitingBytes = 0;
  #running: Promise<void> | undefined;
  #closed = false;

  /**
   * `transact` runs the body in one durable transaction: all of it, or, when it rejects, nothing.
   * `beforeCommit` runs inside, after the jobs; `afterCommit` once it is durable, before the callers hear of it.
   */
  constructor(
    transact: (body: () => void) => Promise<void>,
    beforeCommit: () => void,
    afterCommit: () => void,
  ) {
    this.#transact = transact;
    this.#beforeCommit = beforeCommit;
    this.#afterCommit = afterCommit;
  }

  /**
   * Resolves with what `work` returned once that is durable. A CloisterError that `work` throws is its caller's
   * alone, so it must be thrown before the first write; any other error undoes the whole group.
   */
  submit<Result>(bytes: number, work: () => Result): Promise<Result> {
    if (this.#closed)
      return Promise.reject(new CloisterError('unavailable', 'Could not write: the store is closed.'));
    if (this.#waiting.length >= MAX_WAITING_JOBS || this.#waitingBytes + bytes > MAX_WAITING_BYTES) {
      return Promise.reject(
        new CloisterError(
          'limit.exceeded',
          `Could not write: ${this.#waiting.length} transactions are waiting for the disk already.`,
        ),
      );
    }
    const { promise, resolve, reject } = Promise.withResolvers<Result>();
    let settle = (): void => reject(new Error('The work was never run.'));
    const job: Job = {
      bytes,
      work: () => {
        try {
          const result = work();
          settle = () => resolve(result);
        } catch (error) {
          if (!(error instanceof CloisterError)) throw error;
          settle = () => reject(error);
        }
      },
      resolve: () => settle(),
      reject,
    };
    this.#waiting.push(job);
    this.#waitingBytes += bytes;
    this.#running ??= this.#run();
    return promise;
  }

  /** Takes no more; resolves when nothing waits and nothing is under way. */
  async close(): Promise<void> {
    this.#closed = true;
    while (this.#running) await this.#running;
  }

  async #run(): Promise<void> {
    await Promise.resolve(); // what the same turn still submits goes along
    while (this.#waiting.length > 0) {
      const jobs = this.#takeGroup();
      try {
        await this.#transact(() => {
          for (const job of jobs) job.work();
          this.#beforeCommit();
        });
      } catch (error) {
        const failure = new CloisterError('unavailable', 'Could not write to the store.', { cause: error });
        for (const job of jobs) job.reject(failure);
        continue;
      }
      this.#afterCommit();
      for (const job of jobs) job.resolve();
    }
    this.#running = undefined;
  }

  #takeGroup(): Job[] {
    let bytes = 0;
    let count = 0;
    for (const job of this.#waiting) {
      if (count === JOBS_PER_COMMIT || (count > 0 && bytes + job.bytes > BYTES_PER_COMMIT)) break;
      bytes += job.bytes;
      count += 1;
    }
    this.#waitingBytes -= bytes;
    return this.#waiting.splice(0, count);
  }
}
