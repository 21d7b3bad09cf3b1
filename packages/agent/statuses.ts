// What this node has to say of its allocations: the newest word on each, kept until the control plane has it, and said
// again in each session. Many changes while there is no session, or a slow one, are one word.
import { join } from 'node:path';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import type { AllocationStatus } from '@cloister/link/messages.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import type { AllocationState, Timeline } from '@cloister/model/job.ts';
import type { Reason } from '@cloister/model/schema.ts';

export interface StatusNews {
  readonly state: Exclude<AllocationState, 'pending' | 'placed' | 'lost'>;
  readonly exitCode?: number;
  readonly signal?: number;
  readonly oomKilled?: boolean;
  readonly reason?: Reason;
  readonly imageDigest?: string;
  readonly timeline?: Timeline;
}

/** Sequences of one agent's life; more changes than these no life has. */
const SEQUENCES_OF_A_LIFE = 1_000_000_000;

export class StatusBook {
  readonly #firstSequence: number;
  readonly #newest = new Map<string, AllocationStatus>();
  readonly #unsaid = new Set<string>();
  #count = 0;
  #wake: () => void = () => {};

  private constructor(life: number) {
    this.#firstSequence = life * SEQUENCES_OF_A_LIFE;
  }

  /** Sequences grow over restarts, whatever the clock says: each life of an agent has its own, counted on the disk. */
  static async open(stateFolder: string): Promise<StatusBook> {
    const path = join(stateFolder, 'life');
    const before = (await readFileIfThere(path)) ?? '0';
    // Beginning anew would make all that this agent says older than what the one before it said.
    if (!/^\d{1,7}$/.test(before))
      throw new CloisterError('internal', `${path} is damaged: it holds no number.`);
    const life = Number(before) + 1;
    await writeFileDurably(path, `${life}`);
    return new StatusBook(life);
  }

  get(allocationId: string): AllocationStatus | undefined {
    return this.#newest.get(allocationId);
  }

  tell(allocationId: string, news: StatusNews): void {
    this.#count += 1;
    this.#newest.set(allocationId, {
      allocationId,
      sequence: this.#firstSequence + this.#count,
      state: news.state,
      ...(news.exitCode === undefined ? {} : { exitCode: news.exitCode }),
      ...(news.signal === undefined ? {} : { signal: news.signal }),
      oomKilled: news.oomKilled ?? false,
      reasonCode: news.reason?.code ?? '',
      reasonMessage: news.reason?.message ?? '',
      imageDigest: news.imageDigest ?? '',
      timelineJson: JSON.stringify(news.timeline ?? {}),
    });
    this.#unsaid.add(allocationId);
    this.#wake();
  }

  forget(allocationId: string): void {
    this.#newest.delete(allocationId);
    this.#unsaid.delete(allocationId);
  }

  /** For one session, until aborted: first all that there is, then what changes. */
  async *news(signal: AbortSignal): AsyncGenerator<AllocationStatus> {
    for (const id of this.#newest.keys()) this.#unsaid.add(id);
    const wake = (): void => this.#wake();
    signal.addEventListener('abort', wake);
    try {
      while (!signal.aborted) {
        const changed = new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        for (const id of this.#unsaid) {
          this.#unsaid.delete(id);
          const status = this.#newest.get(id);
          if (status) yield status;
          if (signal.aborted) return;
        }
        if (this.#unsaid.size === 0) await changed;
      }
    } finally {
      signal.removeEventListener('abort', wake);
    }
  }
}
