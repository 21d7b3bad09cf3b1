// Brings what is closer to what should be, whenever something changed: ends what was stopped before it was placed,
// gives up the work of nodes that are down, starts ended instances of services again, finishes and removes jobs, and
// places what is pending. Changes that come together are handled together.
//
// When a node is down, its allocations are lost, for good: an instance of a service is replaced by a new allocation,
// a batch instance is not, because it may have done its work already. A node that comes back is told to end what it
// still runs.
import { describeError } from '@cloister/model/errors.ts';
import type { JobId, NodeId } from '@cloister/model/ids.ts';
import { isEnded } from '@cloister/model/job.ts';
import type { Change } from './commit.ts';
import { trimEvents } from './events.ts';
import type { Fleet } from './fleet.ts';
import { deleteJob, mayRemove, newAllocation, tellOfJob } from './jobs.ts';
import { keys } from './keys.ts';
import { Placer } from './placing.ts';
import type { AllocationRecord, Held, JobRecord } from './records.ts';
import type { Cluster } from './settings.ts';
import type { ClusterState, StateChange } from './state.ts';

/** Allocations changed in one transaction. */
const BATCH = 200;
const MAX_BACKOFF_MS = 300_000;
/** An instance that ran this long was a good one: its successor does not wait for longer than the first did. */
const GOOD_RUN_MS = 600_000;
const RETRY_MS = 1_000;
/** After this long, what was due has been done. */
const FORGET_DUE_MS = 60_000;
/** For a client that is about to attach, and of those that are attached and slow. */
const REMOVE_LINGER_MS = 2_000;
const REMOVE_ATTACHED_MS = 3_600_000;

export class Reconciler {
  readonly placer: Placer;
  readonly #cluster: Cluster;
  readonly #fleet: Fleet;
  /** How many are attached to a job. */
  readonly #attachedTo: (jobId: JobId) => number;
  readonly #stop = new AbortController();
  readonly #dirtyJobs = new Set<JobId>();
  /** When something is due that no change will announce: by monotonic clock. */
  readonly #due = new Map<string, number>();
  #placeable = true;
  #wake: () => void = () => {};
  #awake = true;
  readonly #stopListening: () => void;
  #running: Promise<void> = Promise.resolve();

  constructor(cluster: Cluster, fleet: Fleet, attachedTo: (jobId: JobId) => number) {
    this.#cluster = cluster;
    this.#fleet = fleet;
    this.#attachedTo = attachedTo;
    this.placer = new Placer(cluster, fleet);
    this.#stopListening = cluster.follower.listen((change) => this.#notice(change));
    fleet.onChange(() => {
      this.#placeable = true;
      this.poke();
    });
  }

  async start(): Promise<void> {
    for (const jobId of this.#cluster.follower.state.orphanedJobIds()) {
      await this.#cluster.committer.commit((_state, change) => {
        change.deleteAll(keys.allocationsOf(jobId));
        return true;
      });
    }
    this.#reviewAll();
    this.#running = this.#run();
  }

  /** Something changed that the store does not know of. */
  poke(): void {
    this.#awake = true;
    this.#wake();
  }

  touch(jobId: JobId): void {
    this.#dirtyJobs.add(jobId);
    this.poke();
  }

  async close(): Promise<void> {
    this.#stopListening();
    this.#stop.abort();
    this.#wake();
    await this.#running;
  }

  #notice(change: StateChange): void {
    for (const jobId of change.jobs) this.#dirtyJobs.add(jobId);
    for (const { jobId, state } of change.allocations.values()) {
      this.#dirtyJobs.add(jobId);
      if (state === 'pending' || isEnded(state)) this.#placeable = true;
    }
    if (change.nodes.size > 0) this.#placeable = true;
    if (this.#placeable || this.#dirtyJobs.size > 0) this.poke();
  }

  #reviewAll(): void {
    for (const jobId of this.#cluster.follower.state.jobs.keys()) this.#dirtyJobs.add(jobId);
    this.#placeable = true;
    this.#awake = true;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      await this.#rest();
      if (signal.aborted) return;
      this.#awake = false;
      try {
        await this.#round();
      } catch (error) {
        if (signal.aborted) return;
        this.#cluster.logger.error({ error: describeError(error) }, 'a round of the reconciler failed');
        await this.#cluster.clock.sleep(RETRY_MS, signal).catch(() => {});
        this.#reviewAll();
      }
    }
  }

  /** Until there is news, or something is due. */
  async #rest(): Promise<void> {
    if (this.#awake) return;
    const woken = new Promise<void>((resolve) => (this.#wake = resolve));
    const timer = new AbortController();
    const nowMs = this.#cluster.clock.monotonic();
    let next = Number.POSITIVE_INFINITY;
    for (const dueMs of this.#due.values()) if (dueMs > nowMs) next = Math.min(next, dueMs);
    const sleeping = Number.isFinite(next)
      ? this.#cluster.clock.sleep(Math.ceil(next - nowMs) + 1, timer.signal).catch(() => {})
      : woken;
    await Promise.race([woken, sleeping]);
    timer.abort();
  }

  async #round(): Promise<void> {
    for (const nodeId of this.#cluster.follower.state.nodes.keys()) {
      if (this.#fleet.healthOf(nodeId) === 'down') await this.#giveUp(nodeId);
    }
    const nowMs = this.#cluster.clock.monotonic();
    for (const [key, dueMs] of this.#due) {
      if (dueMs <= nowMs) this.#dirtyJobs.add(key.split('/')[0] as JobId);
      if (dueMs + FORGET_DUE_MS <= nowMs && key.includes('/alc-')) this.#due.delete(key);
    }
    const jobs = [...this.#dirtyJobs];
    this.#dirtyJobs.clear();
    for (const jobId of jobs) await this.#review(jobId);
    if (this.#placeable) {
      this.#placeable = false;
      await this.placer.placeAll();
    }
    await trimEvents(this.#cluster);
  }

  /** Marks what a node had as lost. */
  async #giveUp(nodeId: NodeId): Promise<void> {
    const { committer, follower } = this.#cluster;
    const unended = (state: ClusterState) =>
      state.allocationsOfNode(nodeId).filter(({ record }) => !isEnded(record.state));
    while (unended(follower.state).length > 0) {
      const done = await committer.commit((state, change) => {
        if (this.#fleet.healthOf(nodeId) !== 'down') return false;
        const name = state.nodes.get(nodeId)?.record.name ?? nodeId;
        const reason = { code: 'node.down', message: `The node ${name} was gone for too long.` };
        for (const held of unended(state).slice(0, BATCH)) end(state, change, held, 'lost', reason);
        return change.ops.length > 0;
      });
      if (!done) return;
    }
  }

  async #review(jobId: JobId): Promise<void> {
    const job = this.#cluster.follower.state.jobs.get(jobId);
    if (!job) {
      for (const key of this.#due.keys()) if (key.startsWith(`${jobId}/`)) this.#due.delete(key);
      return;
    }
    await this.#cluster.committer.commit((state, change) => {
      const current = state.jobs.get(jobId);
      if (!current) return false;
      if (current.record.desired !== 'run') endPending(state, change, current);
      else if (current.record.spec.kind === 'service') this.#replaceEnded(state, change, current);
      if (change.ops.length === 0 && mayRemove(state, current)) this.#finish(change, current);
      return change.ops.length > 0;
    });
  }

  #finish(change: Change, job: Held<JobRecord>): void {
    const { record, modRevision } = job;
    if (
      record.removing ||
      (record.state === 'done' && record.spec.removeWhenDone && this.#mayVanish(record.id))
    ) {
      deleteJob(change, job);
    } else if (record.state !== 'done') {
      change.put(keys.job(record.id), { ...record, state: 'done' }, modRevision);
      tellOfJob(change, record, 'job.done');
    }
  }

  /** Nobody is attached, and nobody came for a while; or somebody has been for much too long. */
  #mayVanish(jobId: JobId): boolean {
    const nowMs = this.#cluster.clock.monotonic();
    const lingerUntil = this.#dueAt(`${jobId}/linger`, REMOVE_LINGER_MS);
    const attachedUntil = this.#dueAt(`${jobId}/attached`, REMOVE_ATTACHED_MS);
    return (this.#attachedTo(jobId) === 0 && nowMs >= lingerUntil) || nowMs >= attachedUntil;
  }

  #replaceEnded(state: ClusterState, change: Change, { record: job }: Held<JobRecord>): void {
    const newest = new Map<number, Held<AllocationRecord>>();
    const all = state.allocationsOfJob(job.id);
    for (const held of all) {
      if (held.record.attempt >= (newest.get(held.record.index)?.record.attempt ?? 0))
        newest.set(held.record.index, held);
    }
    const nowMs = this.#cluster.clock.monotonic();
    for (const { record } of newest.values()) {
      if (change.ops.length >= BATCH) return;
      const key = `${job.id}/${record.id}`;
      if (!isEnded(record.state) || this.#dueAt(key, this.#backoffMs(record)) > nowMs) continue;
      const replacement = newAllocation(job, record.index, record.attempt + 1, change.nowMs);
      change.put(keys.allocation(job.id, replacement.id), replacement, 0);
      tellOfAllocation(state, change, replacement, `Attempt ${replacement.attempt + 1}.`);
      // Of what ended, the newest is kept for its logs.
      const older = all.filter(
        (held) => held.record.index === record.index && held.record.attempt < record.attempt,
      );
      for (const held of older) change.delete(keys.allocation(job.id, held.record.id), held.modRevision);
    }
  }

  #backoffMs(record: AllocationRecord): number {
    if (record.state === 'lost') return 0; // it did nothing wrong
    const { startedAt, endedAt } = record.timeline;
    const ranMs = startedAt !== undefined && endedAt !== undefined ? endedAt - startedAt : 0;
    const attempt = ranMs >= GOOD_RUN_MS ? 0 : Math.min(record.attempt, 30);
    return Math.min(MAX_BACKOFF_MS, this.#cluster.settings.serviceBackoffMs * 2 ** attempt);
  }

  /** When the thing is due: `afterMs` from the first time that this was asked. */
  #dueAt(key: string, afterMs: number): number {
    const known = this.#due.get(key);
    if (known !== undefined) return known;
    const dueMs = this.#cluster.clock.monotonic() + afterMs;
    this.#due.set(key, dueMs);
    return dueMs;
  }
}

function endPending(state: ClusterState, change: Change, { record: job }: Held<JobRecord>): void {
  const reason = {
    code: 'state.wrong',
    message: 'The job was ended before this instance was given to a node.',
  };
  const pending = state.allocationsOfJob(job.id).filter(({ record }) => record.state === 'pending');
  for (const held of pending.slice(0, BATCH)) end(state, change, held, 'failed', reason);
}

function end(
  state: ClusterState,
  change: Change,
  { record, modRevision }: Held<AllocationRecord>,
  how: 'failed' | 'lost',
  reason: { code: string; message: string },
): void {
  change.put(keys.allocation(record.jobId, record.id), { ...record, state: how, reason }, modRevision);
  tellOfAllocation(state, change, { ...record, state: how }, reason.message);
}

function tellOfAllocation(
  state: ClusterState,
  change: Change,
  record: AllocationRecord,
  message: string,
): void {
  const name = `${state.jobs.get(record.jobId)?.record.name ?? record.jobId}/${record.index}`;
  const type = record.state === 'pending' ? 'allocation.created' : (`allocation.${record.state}` as const);
  change.tell({ type, subject: record.id, name, tenantId: record.tenantId, message });
}
