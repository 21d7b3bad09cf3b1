// Which nodes may take the work at all. Each predicate is one question with yes or no; a node must pass them all.
// To add one, see README.md.
import type { Candidate } from './candidate.ts';
import { type Charge, chargeOf, type PendingAllocation } from './snapshot.ts';

export interface Predicate {
  /** Stable: users and tests see it. */
  readonly name: string;
  readonly allows: (candidate: Candidate, work: PendingAllocation) => boolean;
  /** Why nodes were ruled out, as what follows "3 nodes ". `one`: it is a single node. */
  readonly reason: (work: PendingAllocation, one: boolean) => string;
}

/** In this order; the first that a node fails is the one that is reported. What is about the node itself comes first. */
export const PREDICATES: readonly Predicate[] = [
  {
    // Never placed anywhere else, however full the workers are: work of tenants stays off what runs the cluster.
    name: 'role',
    allows: ({ node }) => node.role === 'worker',
    reason: (_, one) => (one ? 'is not a worker' : 'are not workers'),
  },
  {
    name: 'health',
    allows: ({ node }) => node.health === 'ready',
    reason: (_, one) => (one ? 'is not ready' : 'are not ready'),
  },
  {
    name: 'cordon',
    allows: ({ node }) => !node.cordoned,
    reason: (_, one) => (one ? 'is cordoned' : 'are cordoned'),
  },
  {
    name: 'labels',
    allows: ({ node }, { nodeLabels }) => hasLabels(node.labels, nodeLabels),
    reason: ({ nodeLabels }, one) => `${one ? 'lacks' : 'lack'} the labels ${describeLabels(nodeLabels)}`,
  },
  {
    name: 'sandboxes',
    allows: (candidate, work) => fits(candidate, work, 'sandboxes'),
    reason: (_, one) => `${one ? 'has' : 'have'} as many sandboxes as ${one ? 'it' : 'they'} can`,
  },
  {
    name: 'cpu',
    allows: (candidate, work) => fits(candidate, work, 'cpuMilli'),
    reason: ({ resources }, one) => `${one ? 'has' : 'have'} less than ${resources.cpuMilli / 1000} CPU free`,
  },
  {
    name: 'memory',
    allows: (candidate, work) => fits(candidate, work, 'memoryMiB'),
    reason: ({ resources }, one) =>
      `${one ? 'has' : 'have'} less than ${resources.memoryMiB} MiB of memory, and what a sandbox takes beyond it, free`,
  },
  {
    name: 'disk',
    allows: (candidate, work) => fits(candidate, work, 'diskMiB'),
    reason: ({ resources }, one) => `${one ? 'has' : 'have'} less than ${resources.diskMiB} MiB of disk free`,
  },
];

function fits({ node, used }: Candidate, { resources }: PendingAllocation, what: keyof Charge): boolean {
  return used[what] + chargeOf(resources, node.capacity)[what] <= node.capacity[what];
}

/** Asked of every node for every allocation: no list is made of the labels. */
function hasLabels(
  labels: Readonly<Record<string, string>>,
  wanted: Readonly<Record<string, string>>,
): boolean {
  for (const name in wanted) {
    if (!Object.hasOwn(labels, name) || labels[name] !== wanted[name]) return false;
  }
  return true;
}

function describeLabels(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels)
    .map(([name, value]) => `${name}=${value}`)
    .join(', ');
}
