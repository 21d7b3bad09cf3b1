// What the scheduler is told: the nodes as they were at one moment, and the work that has no node yet.
// Plain data, so that a plan can be made anywhere from a file: in the server, the simulator, a test.
import type { AllocationId, JobId, NodeId, TenantId } from '@cloister/model/ids.ts';
import type { Resources } from '@cloister/model/job.ts';
import type { Capacity, Node } from '@cloister/model/node.ts';

/**
 * A node. A Node of the model is one as it is. `used` is the sum of chargeOf() over the allocations that are on
 * the node and have not ended; `version` grows whenever anything here changes, and the commit of a plan checks it.
 */
export type SnapshotNode = Pick<
  Node,
  'id' | 'role' | 'health' | 'cordoned' | 'labels' | 'capacity' | 'used' | 'version'
>;

export interface Snapshot {
  /** In any order; the plan does not depend on it. */
  readonly nodes: readonly SnapshotNode[];
}

/** An allocation without a node. */
export interface PendingAllocation {
  readonly allocationId: AllocationId;
  readonly jobId: JobId;
  readonly tenantId: TenantId;
  /** Which instance of the job. */
  readonly index: number;
  readonly resources: Resources;
  /** Only nodes that have all of these. */
  readonly nodeLabels: Readonly<Record<string, string>>;
  /** The nodes that hold instances of the same job, once an instance. The same for all pending work of a job. */
  readonly jobNodes: readonly NodeId[];
}

/** What an allocation takes from a node. */
export interface Charge {
  readonly cpuMilli: number;
  readonly memoryMiB: number;
  readonly diskMiB: number;
  readonly sandboxes: number;
}

/** The resources, and what a sandbox costs this node beyond them. Whoever counts `used` must count with this. */
export function chargeOf(resources: Resources, capacity: Pick<Capacity, 'sandboxOverheadMiB'>): Charge {
  return {
    cpuMilli: resources.cpuMilli,
    memoryMiB: resources.memoryMiB + capacity.sandboxOverheadMiB,
    diskMiB: resources.diskMiB,
    sandboxes: 1,
  };
}
