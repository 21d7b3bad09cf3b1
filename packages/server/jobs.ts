// What may be done with a job: make it, end it, remove it.
import { CloisterError } from '@cloister/model/errors.ts';
import { type JobId, newAllocationId, newJobId, type TenantId } from '@cloister/model/ids.ts';
import { isEnded, type JobSpec } from '@cloister/model/job.ts';
import type { Change } from './commit.ts';
import { keys } from './keys.ts';
import { randomName } from './names.ts';
import type { AllocationRecord, Held, JobRecord } from './records.ts';
import type { Cluster, Settings } from './settings.ts';
import type { ClusterState } from './state.ts';

const NAME_ATTEMPTS = 5;
/** Roughly: host[:port]/path:tag@algorithm:digest. The node that pulls it parses it in full. */
const REFERENCE =
  /^(?:[A-Za-z0-9.-]+(?::\d{1,5})?\/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[a-f0-9]{64})?$/;

/**
 * Makes a job and its allocations, wholly or not at all: in one transaction, which takes the largest job there may be
 * (LIMITS.count, STORE_BOUNDS.opsPerTxn), so that neither a crash nor a lost race for the name leaves any behind. Work
 * that no node has room for is accepted, and waits with the reason.
 */
export async function createJob(cluster: Cluster, tenantId: TenantId, spec: JobSpec): Promise<JobId> {
  checkReference(spec.image, '/image');
  for (let attempt = 1; ; attempt++) {
    const name = spec.name ?? randomName();
    try {
      return await createNamedJob(cluster, tenantId, name, spec);
    } catch (error) {
      const unlucky =
        spec.name === undefined && error instanceof CloisterError && error.code === 'name.taken';
      if (!unlucky || attempt >= NAME_ATTEMPTS) throw error;
    }
  }
}

async function createNamedJob(
  cluster: Cluster,
  tenantId: TenantId,
  name: string,
  spec: JobSpec,
): Promise<JobId> {
  const { committer, clock, settings } = cluster;
  const id = newJobId();
  const createdAt = clock.now();
  const record: JobRecord = {
    id,
    tenantId,
    name,
    spec,
    state: 'active',
    createdAt,
    desired: 'run',
    stopGraceMs: spec.stopGraceMs,
    removing: false,
  };
  const allocations = Array.from({ length: spec.count }, (_, index) =>
    newAllocation(record, index, 0, createdAt),
  );
  await committer.commit((state, change) => {
    checkQuota(settings, state, record);
    if (state.jobByName(tenantId, name)) throw nameTaken(name);
    change.put(keys.jobName(tenantId, name), id, 0);
    change.put(keys.job(id), record, 0);
    for (const allocation of allocations) change.put(keys.allocation(id, allocation.id), allocation, 0);
    change.tell({
      type: 'job.created',
      subject: id,
      name,
      tenantId,
      message: `${spec.count} × ${spec.image}`,
    });
    return true;
  });
  return id;
}

/** By the state of a moment ago: those who are made at the same time may go beyond it, by as many as they are. */
function checkQuota(settings: Settings, state: ClusterState, { tenantId, spec }: JobRecord): void {
  const { jobs, jobBytes, allocations } = state.quotaUseOf(tenantId);
  const rows = [
    ['jobs', jobs, 1, settings.maxJobsPerTenant],
    ['bytes of specifications', jobBytes, JSON.stringify(spec).length, settings.maxJobBytesPerTenant],
    ['allocations, ended ones included', allocations, spec.count, settings.maxAllocationsPerTenant],
  ] as const;
  for (const [what, used, more, most] of rows) {
    if (used + more <= most) continue;
    throw new CloisterError(
      'limit.exceeded',
      `Could not make the job: of ${most} ${what}, ${used} are used, and it needs ${more}.`,
    );
  }
}

export function newAllocation(
  job: JobRecord,
  index: number,
  attempt: number,
  nowMs: number,
): AllocationRecord {
  return {
    id: newAllocationId(),
    jobId: job.id,
    tenantId: job.tenantId,
    index,
    attempt,
    state: 'pending',
    timeline: { acceptedAt: nowMs },
    createdAt: nowMs,
    sequence: 0,
  };
}

/** Asks for the end of all instances. A kill overrides a stop; a stop does not soften a kill. */
export async function endJob(
  cluster: Cluster,
  jobId: JobId,
  how: 'stop' | 'kill',
  graceMs?: number,
): Promise<void> {
  await cluster.committer.commit((state, change) => {
    const job = requireJob(state, jobId);
    const { record, modRevision } = job;
    if (
      record.state === 'done' ||
      record.desired === 'kill' ||
      (record.desired === how && graceMs === undefined)
    ) {
      return false;
    }
    const desired = how;
    const stopGraceMs = how === 'kill' ? 0 : (graceMs ?? record.stopGraceMs);
    change.put(keys.job(jobId), { ...record, state: 'stopping', desired, stopGraceMs }, modRevision);
    if (record.state === 'active') tellOfJob(change, record, 'job.stopping', `To be ended by "${how}".`);
    return true;
  });
}

/** Removes a job that ended, or marks it to be killed and removed. Throws `state.wrong` when it runs, without force. */
export async function removeJob(cluster: Cluster, jobId: JobId, force: boolean): Promise<void> {
  await cluster.committer.commit((state, change) => {
    const job = requireJob(state, jobId);
    if (mayRemove(state, job)) {
      deleteJob(change, job);
      return true;
    }
    if (!force) {
      throw new CloisterError(
        'state.wrong',
        `Could not remove ${job.record.name}: it has not ended. Stop it, or force.`,
      );
    }
    if (job.record.removing) return false;
    const record: JobRecord = {
      ...job.record,
      state: 'stopping',
      desired: 'kill',
      stopGraceMs: 0,
      removing: true,
    };
    change.put(keys.job(jobId), record, job.modRevision);
    tellOfJob(change, record, 'job.stopping', 'To be killed and removed.');
    return true;
  });
}

/** All instances ended, and none will be started again. */
export function mayRemove(state: ClusterState, { record }: Held<JobRecord>): boolean {
  if (record.state === 'done') return true;
  const comesBack = record.spec.kind === 'service' && record.desired === 'run';
  return !comesBack && state.allocationsOfJob(record.id).every((held) => isEnded(held.record.state));
}

/** The sessions tell the nodes to forget the allocations, logs too. */
export function deleteJob(change: Change, { record, modRevision }: Held<JobRecord>): void {
  change.delete(keys.job(record.id), modRevision);
  change.ops.push({ type: 'delete', key: keys.jobName(record.tenantId, record.name) });
  change.deleteAll(keys.allocationsOf(record.id));
  tellOfJob(change, record, 'job.removed');
}

export function tellOfJob(
  change: Change,
  job: JobRecord,
  type: 'job.stopping' | 'job.done' | 'job.removed',
  message?: string,
): void {
  const { id, name, tenantId } = job;
  change.tell({ type, subject: id, name, tenantId, ...(message ? { message } : {}) });
}

export function checkReference(reference: string, path: string): void {
  if (REFERENCE.test(reference)) return;
  throw new CloisterError(
    'image.reference-invalid',
    `"${reference.slice(0, 80)}" is not a reference to an image.`,
    {
      fields: [{ path, message: 'must be [REGISTRY/]NAME[:TAG|@sha256:DIGEST]' }],
    },
  );
}

function requireJob(state: ClusterState, jobId: JobId): Held<JobRecord> {
  const job = state.jobs.get(jobId);
  if (!job) throw new CloisterError('not-found', 'There is no such job.');
  return job;
}

function nameTaken(name: string): CloisterError {
  return new CloisterError('name.taken', `Could not make the job: there is one named ${name} already.`);
}
