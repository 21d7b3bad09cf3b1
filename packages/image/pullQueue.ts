// Which pulls run when: each image once at a time, groups (tenants) in turn, and every wait with an end.
import { CloisterError } from '@cloister/model/errors.ts';
import { Limiter } from './limiter.ts';
import type { ProgressStep } from './pull.ts';
import { SharedWork } from './shared.ts';

export interface PullQueueOptions {
  /** At once, of one group at most half of them. Default 8. */
  readonly maxPulls?: number | undefined;
  /** For one pull, waiting included. Default one hour. */
  readonly pullTimeoutMs?: number | undefined;
}

export interface QueuedPull<Value> {
  /** What is pulled, for messages. */
  readonly name: string;
  /** Pulls with the same key are one. */
  readonly key: string;
  readonly group: string;
  /** Asked when its turn comes: another pull may have brought it meanwhile. */
  readonly find: () => Value | undefined;
  readonly pull: (signal: AbortSignal, report: (step: ProgressStep) => void) => Promise<Value>;
}

interface Caller {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((step: ProgressStep) => void) | undefined;
}

const DEFAULT_MAX_PULLS = 8;
const DEFAULT_TIMEOUT_MS = 3_600_000;
const MAX_RUNNING_AND_WAITING = 1024;
const MAX_WAITING_PER_GROUP = 128;

export class PullQueue<Value> {
  readonly #timeoutMs: number;
  readonly #limiter: Limiter;
  readonly #pulls = new SharedWork<Value, ProgressStep>();
  /** Of one group each: it waits in its own turn, also for what another group's pull will bring. */
  readonly #turns = new SharedWork<Value, ProgressStep>();

  constructor({ maxPulls = DEFAULT_MAX_PULLS, pullTimeoutMs = DEFAULT_TIMEOUT_MS }: PullQueueOptions) {
    this.#timeoutMs = pullTimeoutMs;
    const perGroup = Math.max(1, Math.floor(maxPulls / 2));
    this.#limiter = new Limiter(maxPulls, { perGroup, maxWaiting: MAX_WAITING_PER_GROUP });
  }

  /** Throws what `pull` throws, 'limit.exceeded', 'image.pull-failed' when it takes too long, or the signal's reason. */
  async run(queued: QueuedPull<Value>, caller: Caller): Promise<Value> {
    if (this.#turns.size >= MAX_RUNNING_AND_WAITING) {
      const message = `${MAX_RUNNING_AND_WAITING} images are being pulled on this node.`;
      throw new CloisterError('limit.exceeded', message);
    }
    const turn = async (signal: AbortSignal, report: (step: ProgressStep) => void): Promise<Value> =>
      await this.#wait(queued, signal, report);
    return await this.#turns.do(JSON.stringify([queued.key, queued.group]), turn, caller);
  }

  /** Cancels everything and waits for its end. */
  async close(reason: unknown): Promise<void> {
    await this.#turns.close(reason);
  }

  async #wait(
    { name, key, group, find, pull }: QueuedPull<Value>,
    signal: AbortSignal,
    report: (step: ProgressStep) => void,
  ): Promise<Value> {
    const late = AbortSignal.timeout(this.#timeoutMs);
    const caller = { signal: AbortSignal.any([signal, late]), onProgress: report };
    const once = async (): Promise<Value> => find() ?? (await this.#pulls.do(key, pull, caller));
    try {
      return await this.#limiter.run(once, caller.signal, group);
    } catch (error) {
      if (signal.aborted || !late.aborted) throw error;
      const message = `${name} was not pulled within ${this.#timeoutMs} ms.`;
      throw new CloisterError('image.pull-failed', message, { cause: error });
    }
  }
}
