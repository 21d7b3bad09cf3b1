// When leases end. Deadlines live in memory only: a keep-alive is a heartbeat, and those never touch the disk.
// That is also why every lease has its whole TTL again after a restart.
import type { Clock } from '@cloister/kit/clock.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { type LeaseId, STORE_BOUNDS } from './store.ts';

/** How often the deadlines are looked at while there are leases: well below the lateness that is promised. */
const LOOK_EVERY_MS = STORE_BOUNDS.leaseLatenessMs / 4;
export const MAX_LEASES = 100_000;

interface Deadline {
  readonly ttlMs: number;
  atMs: number;
}

export class Leases {
  readonly #clock: Clock;
  readonly #deadlines = new Map<LeaseId, Deadline>();
  readonly #stop = new AbortController();
  #running: Promise<void> | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get size(): number {
    return this.#deadlines.size;
  }

  add(lease: LeaseId, ttlMs: number): void {
    this.#deadlines.set(lease, { ttlMs, atMs: this.#clock.monotonic() + ttlMs });
  }

  remove(lease: LeaseId): void {
    this.#deadlines.delete(lease);
  }

  renew(lease: LeaseId): void {
    const deadline = this.#deadlines.get(lease);
    if (!deadline)
      throw new CloisterError('not-found', `There is no lease "${lease.slice(0, 40)}" any more.`);
    deadline.atMs = this.#clock.monotonic() + deadline.ttlMs;
  }

  isOver(lease: LeaseId): boolean {
    const deadline = this.#deadlines.get(lease);
    return deadline !== undefined && deadline.atMs <= this.#clock.monotonic();
  }

  /** Calls `end` with what is over, again and again until stopped; what it fails to end is over the next time too. */
  start(end: (lease: LeaseId) => Promise<void>): void {
    this.#running = this.#run(end);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #run(end: (lease: LeaseId) => Promise<void>): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const over = [...this.#deadlines.keys()].filter((lease) => this.isOver(lease));
      await Promise.allSettled(over.map((lease) => end(lease)));
      try {
        await this.#clock.sleep(LOOK_EVERY_MS, this.#stop.signal);
      } catch {
        return; // stopped
      }
    }
  }
}
