// A node while a plan is made: what it has used grows with each placement, so that the next one sees it.
import type { JobId, NodeId } from '@cloister/model/ids.ts';
import { hashText } from './hash.ts';
import {
  type Charge,
  chargeOf,
  type PendingAllocation,
  type Snapshot,
  type SnapshotNode,
} from './snapshot.ts';

export interface Candidate {
  readonly node: SnapshotNode;
  /** The snapshot's `used`, and the placements of this plan. */
  readonly used: { -readonly [Key in keyof Charge]: number };
  /** For breaking ties. */
  readonly idHash: number;
  /** Instances a job has here, those of this plan included. */
  readonly instances: Map<JobId, number>;
}

export function makeCandidates(snapshot: Snapshot, pending: readonly PendingAllocation[]): Candidate[] {
  const candidates = new Map<NodeId, Candidate>();
  for (const node of snapshot.nodes) {
    candidates.set(node.id, {
      node,
      used: { ...node.used },
      idHash: hashText(node.id),
      instances: new Map(),
    });
  }
  const seen = new Set<JobId>();
  for (const { jobId, jobNodes } of pending) {
    if (seen.has(jobId)) continue;
    seen.add(jobId);
    for (const nodeId of jobNodes) countInstance(candidates.get(nodeId), jobId);
  }
  return [...candidates.values()];
}

export function place(candidate: Candidate, work: PendingAllocation): void {
  const charge = chargeOf(work.resources, candidate.node.capacity);
  candidate.used.cpuMilli += charge.cpuMilli;
  candidate.used.memoryMiB += charge.memoryMiB;
  candidate.used.diskMiB += charge.diskMiB;
  candidate.used.sandboxes += charge.sandboxes;
  countInstance(candidate, work.jobId);
}

/** An instance on a node that is not in the snapshot (it was removed) counts for nobody. */
function countInstance(candidate: Candidate | undefined, jobId: JobId): void {
  candidate?.instances.set(jobId, (candidate.instances.get(jobId) ?? 0) + 1);
}
