// How many long-lived streams are open, by tenant (bounded) and by job (so that a job is not removed under its reader).
import { CloisterError } from '@cloister/model/errors.ts';
import type { JobId, TenantId } from '@cloister/model/ids.ts';

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
      `Could not open the stream: ${this.#maxPerTenant} are open already.`,
    );
  }

  /** Returns how to leave, which may be called more than once. Throws `limit.exceeded`. */
  enter(tenantId: TenantId, jobId?: JobId): () => void {
    this.requireRoom(tenantId);
    add(this.#byTenant, tenantId, 1);
    if (jobId) add(this.#byJob, jobId, 1);
    let inside = true;
    return () => {
      if (!inside) return;
      inside = false;
      add(this.#byTenant, tenantId, -1);
      if (!jobId) return;
      add(this.#byJob, jobId, -1);
      this.#onLeave(jobId);
    };
  }
}

function add<Key>(map: Map<Key, number>, key: Key, by: number): void {
  const count = (map.get(key) ?? 0) + by;
  if (count > 0) map.set(key, count);
  else map.delete(key);
}
