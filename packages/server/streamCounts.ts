// How many long-lived streams are open, by tenant (bounded) and by job (so that a job is not removed under its reader).
import { CloisterError } from '@cloister/model/errors.ts';
import type { JobId, TenantId } from '@cloister/model/ids.ts';
import { addToCount } from './counts.ts';

export class StreamCounts {
  readonly #maxPerTenant: number;
  readonly #byTenant = new Map<TenantId, number>();
  readonly #byJob = new Map<JobId, number>();
  #onLeave: (jobId: JobId) => void = () => {};

  constructor(maxPerTenant: number) {
    this.#maxPerTenant = maxPerTenant;
  }

  onLeave(listener: (jobId: JobId) => void): void {
    this.#onLeave = listener;
  }

  attachedTo(jobId: JobId): number {
    return this.#byJob.get(jobId) ?? 0;
  }

  /** Throws `limit.exceeded`. */
  requireRoom(tenantId: TenantId): void {
    if ((this.#byTenant.get(tenantId) ?? 0) < this.#maxPerTenant) return;
    throw new CloisterError(
      'limit.exceeded',
      `Could not open the stream: ${this.#maxPerTenant} streams and long polls are open already.`,
    );
  }

  /** Returns how to leave, which may be called more than once. Throws `limit.exceeded`. */
  enter(tenantId: TenantId, jobId?: JobId): () => void {
    this.requireRoom(tenantId);
    addToCount(this.#byTenant, tenantId, 1);
    if (jobId) addToCount(this.#byJob, jobId, 1);
    let inside = true;
    return () => {
      if (!inside) return;
      inside = false;
      addToCount(this.#byTenant, tenantId, -1);
      if (!jobId) return;
      addToCount(this.#byJob, jobId, -1);
      this.#onLeave(jobId);
    };
  }
}
