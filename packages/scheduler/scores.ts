// Which of the nodes that may take the work is the best. Spread, never pack: a full node beside idle ones wears out
// first, is slowest for its tenants, and takes the most with it when it fails.
import type { Candidate } from './candidate.ts';
import { type Charge, chargeOf, type PendingAllocation } from './snapshot.ts';

export interface Score {
  readonly name: string;
  /** Higher is better. Compared only among nodes that are equal by the scores before it. */
  readonly of: (candidate: Candidate, work: PendingAllocation) => number;
}

const MEASURED = [
  'cpuMilli',
  'memoryMiB',
  'diskMiB',
  'sandboxes',
] as const satisfies readonly (keyof Charge)[];

/** In this order, the first that differs decides. */
export const SCORES: readonly Score[] = [
  // A job's instances on different nodes first: one machine that fails must not take all of it.
  { name: 'job-spread', of: ({ instances }, { jobId }) => -(instances.get(jobId) ?? 0) },
  { name: 'free-share', of: freeShare },
];

/**
 * The share of the node that is still free after the placement, of the resource that is scarcest then: the dominant
 * resource of Ghodsi et al., "Dominant Resource Fairness" (2011), seen from the node. 1 is idle, 0 is full.
 */
function freeShare({ node, used }: Candidate, work: PendingAllocation): number {
  const charge = chargeOf(work.resources, node.capacity);
  let least = 1;
  for (const what of MEASURED) {
    const capacity = node.capacity[what];
    const free = capacity === 0 ? 0 : (capacity - used[what] - charge[what]) / capacity;
    if (free < least) least = free;
  }
  return least;
}
