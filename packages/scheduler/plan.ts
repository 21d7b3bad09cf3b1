// Placing: (snapshot, pending work, now) -> plan. Pure: no I/O, no clock, no chance, so the same question always
// has the same answer. The plan is a proposal; whoever commits it checks the versions of the nodes.
import type { AllocationId, NodeId } from '@cloister/model/ids.ts';
import { type Candidate, makeCandidates, place } from './candidate.ts';
import { hashText, mixHashes } from './hash.ts';
import { PREDICATES } from './predicates.ts';
import { SCORES } from './scores.ts';
import type { PendingAllocation, Snapshot } from './snapshot.ts';

export interface Placement {
  readonly allocationId: AllocationId;
  readonly nodeId: NodeId;
  /** The node's version in the snapshot: when it has another at the commit, this placement is planned again. */
  readonly nodeVersion: number;
}

/** Nodes that one predicate ruled out. Each node is counted once, at the first predicate it fails. */
export interface Reason {
  readonly predicate: string;
  readonly nodes: number;
  /** For example "3 nodes are cordoned". */
  readonly message: string;
}

export interface Unplaced {
  readonly allocationId: AllocationId;
  readonly reasons: readonly Reason[];
  /** All reasons in a sentence for a user. */
  readonly message: string;
}

export interface Plan {
  /** Milliseconds since the Unix epoch: the `nowMs` that it was made with. */
  readonly plannedAtMs: number;
  /** In the order of the pending work. */
  readonly placements: readonly Placement[];
  readonly unplaced: readonly Unplaced[];
}

/**
 * Places what can be placed, first come, first served: in the order of `pending`, each seeing the ones before it.
 * `nowMs` is the time of the decision. Costs nodes x pending work.
 */
export function plan(snapshot: Snapshot, pending: readonly PendingAllocation[], nowMs: number): Plan {
  const candidates = makeCandidates(snapshot, pending);
  const placements: Placement[] = [];
  const unplaced: Unplaced[] = [];
  for (const work of pending) {
    const best = chooseBest(candidates, work);
    if (best) {
      place(best, work);
      placements.push({
        allocationId: work.allocationId,
        nodeId: best.node.id,
        nodeVersion: best.node.version,
      });
    } else {
      unplaced.push(explain(candidates, work));
    }
  }
  return { plannedAtMs: nowMs, placements, unplaced };
}

function chooseBest(candidates: readonly Candidate[], work: PendingAllocation): Candidate | undefined {
  const workHash = hashText(work.allocationId);
  let best: Candidate | undefined;
  // Two rows of numbers that change places, because this is done for every node and every allocation.
  let scores = new Float64Array(SCORES.length + 1);
  let bestScores = new Float64Array(SCORES.length + 1);
  for (const candidate of candidates) {
    if (!PREDICATES.every(({ allows }) => allows(candidate, work))) continue;
    SCORES.forEach(({ of }, n) => {
      scores[n] = of(candidate, work);
    });
    // Equal nodes: an order of its own for every allocation, so that schedulers who plan at once do not all run to
    // the same node and undo one another.
    scores[SCORES.length] = mixHashes(workHash, candidate.idHash);
    if (best && !isBetter(scores, bestScores, candidate.node.id < best.node.id)) continue;
    best = candidate;
    [scores, bestScores] = [bestScores, scores];
  }
  return best;
}

/** The first score that differs decides. */
function isBetter(scores: Float64Array, others: Float64Array, whenEqual: boolean): boolean {
  for (let n = 0; n < scores.length; n++) {
    const difference = (scores[n] ?? 0) - (others[n] ?? 0);
    if (difference !== 0) return difference > 0;
  }
  return whenEqual;
}

function explain(candidates: readonly Candidate[], work: PendingAllocation): Unplaced {
  const ruledOut = new Map<string, number>();
  for (const candidate of candidates) {
    const failed = PREDICATES.find(({ allows }) => !allows(candidate, work));
    if (failed) ruledOut.set(failed.name, (ruledOut.get(failed.name) ?? 0) + 1);
  }
  const reasons = PREDICATES.flatMap(({ name, reason }): Reason[] => {
    const nodes = ruledOut.get(name) ?? 0;
    if (nodes === 0) return [];
    const message = `${nodes === 1 ? '1 node' : `${nodes} nodes`} ${reason(work, nodes === 1)}`;
    return [{ predicate: name, nodes, message }];
  });
  return { allocationId: work.allocationId, reasons, message: summarize(candidates.length, reasons) };
}

function summarize(nodes: number, reasons: readonly Reason[]): string {
  if (nodes === 0) return 'No node can take it: the cluster has no nodes.';
  return `No node can take it: ${reasons.map(({ message }) => message).join('; ')}.`;
}
