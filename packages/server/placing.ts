// Gives pending allocations to nodes: asks the scheduler for a plan, and commits it only while the nodes are what
// they were when the plan was made.
import type { AllocationId, JobId, NodeId } from '@cloister/model/ids.ts';
import { isEnded } from '@cloister/model/job.ts';
import type { Reason } from '@cloister/model/schema.ts';
import { type Placement, plan } from '@cloister/scheduler/plan.ts';
import type { PendingAllocation, SnapshotNode } from '@cloister/scheduler/snapshot.ts';
import type { Change } from './commit.ts';
import type { Fleet } from './fleet.ts';
import { keys } from './keys.ts';
import type { AllocationRecord } from './records.ts';
import type { Cluster } from './settings.ts';
import type { ClusterState } from './state.ts';

/** Work in one plan: its commit is one transaction, of at most three compares and two puts for each. */
const MAX_PER_PLAN = 160;

export class Placer {
  readonly #cluster: Cluster;
  readonly #fleet: Fleet;
  #reasons = new Map<AllocationId, Reason>();

  constructor(cluster: Cluster, fleet: Fleet) {
    this.#cluster = cluster;
    this.#fleet = fleet;
  }

  /** Why the allocation has no node yet. In memory: it changes with every node that comes or goes. */
  reasonOf(id: AllocationId): Reason | undefined {
    return this.#reasons.get(id);
  }

  /** Tries all pending work once. */
  async placeAll(): Promise<void> {
    const { follower, clock } = this.#cluster;
    const reasons = new Map<AllocationId, Reason>();
    const stuckJobs = new Map<JobId, Reason>();
    const queue = pendingInTurns(follower.state);
    for (let next = 0; next < queue.length; ) {
      const work: PendingAllocation[] = [];
      for (; next < queue.length && work.length < MAX_PER_PLAN; next++) {
        const pending = queue[next] && describeWork(follower.state, queue[next]?.id);
        const stuck = pending && stuckJobs.get(pending.jobId);
        // Instances of a job want the same: when one finds no node, the rest finds none either.
        if (stuck) reasons.set(pending.allocationId, stuck);
        else if (pending) work.push(pending);
      }
      if (work.length === 0) continue;
      const workRevisions = new Map(follower.state.nodeWork);
      const proposal = plan({ nodes: this.#snapshot(follower.state) }, work, clock.now());
      for (const { allocationId, message } of proposal.unplaced) {
        const reason: Reason = { code: 'unavailable', message };
        reasons.set(allocationId, reason);
        const jobId = follower.state.allocations.get(allocationId)?.record.jobId;
        if (jobId) stuckJobs.set(jobId, reason);
      }
      if (proposal.placements.length > 0) await this.#commit(proposal.placements, workRevisions);
    }
    this.#reasons = reasons;
  }

  #snapshot(state: ClusterState): SnapshotNode[] {
    return [...state.nodes.values()].map((held) => this.#fleet.view(held));
  }

  async #commit(placements: readonly Placement[], workRevisions: ReadonlyMap<NodeId, number>): Promise<void> {
    await this.#cluster.committer.commit((state, change) => {
      const touched = new Set<NodeId>();
      for (const { allocationId, nodeId, nodeVersion } of placements) {
        const allocation = state.allocations.get(allocationId);
        const node = state.nodes.get(nodeId);
        const asPlanned =
          node?.modRevision === nodeVersion &&
          state.nodeWork.get(nodeId) === workRevisions.get(nodeId) &&
          this.#fleet.healthOf(nodeId) === 'ready';
        if (!asPlanned || allocation?.record.state !== 'pending') continue; // planned again in the next pass
        touched.add(nodeId);
        const record: AllocationRecord = {
          ...allocation.record,
          state: 'placed',
          nodeId,
          timeline: { ...allocation.record.timeline, placedAt: change.nowMs },
        };
        change.put(keys.allocation(record.jobId, allocationId), record, allocation.modRevision);
        tellPlaced(state, change, record, node.record.name);
      }
      for (const nodeId of touched) {
        change.require(keys.node(nodeId), state.nodes.get(nodeId)?.modRevision ?? 0);
        change.put(keys.nodeWork(nodeId), 1, workRevisions.get(nodeId) ?? 0);
      }
      return touched.size > 0;
    });
  }
}

/** Tenants in turn, each with its oldest job first, so that one with much work does not keep the others waiting. */
function pendingInTurns(state: ClusterState): AllocationRecord[] {
  const byTenant = new Map<string, AllocationRecord[]>();
  for (const id of state.pending) {
    const record = state.allocations.get(id)?.record;
    const job = record && state.jobs.get(record.jobId)?.record;
    if (!record || job?.desired !== 'run') continue;
    const list = byTenant.get(record.tenantId);
    if (list) list.push(record);
    else byTenant.set(record.tenantId, [record]);
  }
  const lists = [...byTenant.values()];
  for (const list of lists) list.sort((a, b) => a.createdAt - b.createdAt || a.index - b.index);
  const longest = Math.max(0, ...lists.map((list) => list.length));
  const turns: AllocationRecord[] = [];
  for (let turn = 0; turn < longest; turn++) {
    for (const list of lists) {
      const record = list[turn];
      if (record) turns.push(record);
    }
  }
  return turns;
}

function describeWork(state: ClusterState, id: AllocationId | undefined): PendingAllocation | undefined {
  const record = id && state.allocations.get(id)?.record;
  const job = record && state.jobs.get(record.jobId)?.record;
  if (!record || !job || record.state !== 'pending') return undefined;
  const jobNodes: NodeId[] = [];
  for (const { record: other } of state.allocationsOfJob(job.id)) {
    if (other.nodeId && !isEnded(other.state)) jobNodes.push(other.nodeId);
  }
  return {
    allocationId: record.id,
    jobId: job.id,
    tenantId: job.tenantId,
    index: record.index,
    resources: job.spec.resources,
    nodeLabels: job.spec.nodeLabels,
    jobNodes,
  };
}

function tellPlaced(state: ClusterState, change: Change, record: AllocationRecord, nodeName: string): void {
  const jobName = state.jobs.get(record.jobId)?.record.name ?? record.jobId;
  change.tell({
    type: 'allocation.placed',
    subject: record.id,
    name: `${jobName}/${record.index}`,
    tenantId: record.tenantId,
    message: `On ${nodeName}.`,
  });
}
