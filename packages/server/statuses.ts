// Statuses of allocations from the nodes, made durable many at a time. What has ended stays ended, whatever a node
// says later; an older status never overwrites a newer one.
import { BoundedQueue } from '@cloister/kit/queue.ts';
import { describeError } from '@cloister/model/errors.ts';
import type { EventType } from '@cloister/model/event.ts';
import type { AllocationId, NodeId } from '@cloister/model/ids.ts';
import { ALLOCATION_STATES, type AllocationState, isEnded, type Timeline } from '@cloister/model/job.ts';
import { keys } from './keys.ts';
import type { AllocationRecord } from './records.ts';
import type { Cluster } from './settings.ts';

const MAX_WAITING = 4096;
const MAX_BATCH = 200;
/** Of statuses as JSON. In a transaction each is there twice at most: in its record, and as what is told of it. */
const MAX_BATCH_BYTES = 524_288;

/** A status, checked. */
export interface NodeStatus {
  readonly allocationId: AllocationId;
  readonly nodeId: NodeId;
  readonly sequence: number;
  readonly state: AllocationState;
  readonly exitCode?: number;
  readonly signal?: number;
  readonly oomKilled: boolean;
  readonly reason?: { readonly code: string; readonly message: string };
  readonly imageDigest: string;
  readonly timeline: Timeline;
}

/** stored: durable, or of no more interest; unknown: there is no such allocation on that node; failed: try again. */
export type StoreOutcome = 'stored' | 'unknown' | 'failed';

interface Waiting {
  readonly status: NodeStatus;
  readonly done: (outcome: StoreOutcome) => void;
}

export class StatusWriter {
  readonly #cluster: Cluster;
  readonly #waiting = new BoundedQueue<Waiting>(MAX_WAITING);
  readonly #running: Promise<void>;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.#running = this.#run();
  }

  /** Waits for room; `done` is called when the status is durable. */
  async submit(status: NodeStatus, done: (outcome: StoreOutcome) => void): Promise<void> {
    if (!(await this.#waiting.push({ status, done }))) done('failed');
  }

  async close(): Promise<void> {
    this.#waiting.close();
    await this.#running;
  }

  async #run(): Promise<void> {
    for await (const first of this.#waiting) {
      const batch = [first];
      let bytes = sizeOf(first);
      while (batch.length < MAX_BATCH && bytes < MAX_BATCH_BYTES && this.#waiting.size > 0) {
        const next = await this.#waiting.take();
        if (next.done) break;
        batch.push(next.value);
        bytes += sizeOf(next.value);
      }
      try {
        const unknown = await this.#store(batch.map(({ status }) => status));
        for (const { status, done } of batch) done(unknown.has(status.allocationId) ? 'unknown' : 'stored');
      } catch (error) {
        this.#cluster.logger.error(
          { error: describeError(error) },
          'could not store what the nodes reported',
        );
        for (const { done } of batch) done('failed');
      }
    }
  }

  /** Returns the allocations that are not there. */
  async #store(statuses: readonly NodeStatus[]): Promise<Set<AllocationId>> {
    const unknown = new Set<AllocationId>();
    await this.#cluster.committer.commit((state, change) => {
      const changed = new Map<AllocationId, AllocationRecord>();
      unknown.clear();
      for (const status of statuses) {
        const held = state.allocations.get(status.allocationId);
        const job = held && state.jobs.get(held.record.jobId);
        if (!held || !job || held.record.nodeId !== status.nodeId) {
          unknown.add(status.allocationId);
          continue;
        }
        const before = changed.get(status.allocationId) ?? held.record;
        const after = withStatus(before, status);
        if (!after) continue;
        changed.set(status.allocationId, after);
        if (after.state !== before.state) {
          const type: EventType = `allocation.${after.state as Exclude<AllocationState, 'pending'>}`;
          const message = describeEnd(after);
          const { tenantId, name } = job.record;
          change.tell({
            type,
            subject: after.id,
            name: `${name}/${after.index}`,
            tenantId,
            ...(message ? { message } : {}),
          });
        }
      }
      for (const record of changed.values()) {
        const revision = state.allocations.get(record.id)?.modRevision ?? 0;
        change.put(keys.allocation(record.jobId, record.id), record, revision);
      }
      return changed.size > 0;
    });
    return unknown;
  }
}

const sizeOf = ({ status }: Waiting): number => Buffer.byteLength(JSON.stringify(status));

/** The record with the status, or undefined when the status says nothing new. */
export function withStatus(record: AllocationRecord, status: NodeStatus): AllocationRecord | undefined {
  if (isEnded(record.state) || status.sequence <= record.sequence) return undefined;
  if (ALLOCATION_STATES.indexOf(status.state) < ALLOCATION_STATES.indexOf(record.state)) return undefined;
  const { acceptedAt: _accepted, placedAt: _placed, ...nodeTimes } = status.timeline;
  const exitCode = status.exitCode ?? (status.signal === undefined ? undefined : 128 + status.signal);
  // A reason is that of its state: "pulling 12 of 80 MiB" explains nothing any more once it runs.
  const { reason: _before, ...kept } = record;
  return {
    ...kept,
    state: status.state,
    sequence: status.sequence,
    ...(exitCode === undefined ? {} : { exitCode }),
    ...(status.signal === undefined ? {} : { signal: status.signal }),
    ...(status.oomKilled ? { oomKilled: true } : {}),
    ...(status.reason ? { reason: status.reason } : {}),
    ...(status.imageDigest ? { imageDigest: status.imageDigest } : {}),
    timeline: { ...record.timeline, ...nodeTimes },
  };
}

function describeEnd(record: AllocationRecord): string | undefined {
  if (record.reason) return record.reason.message.slice(0, 1000);
  if (record.state !== 'exited') return undefined;
  return record.signal === undefined
    ? `Exit code ${record.exitCode ?? 0}.`
    : `Ended by signal ${record.signal}.`;
}
