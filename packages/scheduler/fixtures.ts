// Nodes and work for the tests, and how to make any of them.
import type { AllocationId, JobId, NodeId, TenantId } from '@cloister/model/ids.ts';
import fc from 'fast-check';
import type { PendingAllocation, SnapshotNode } from './snapshot.ts';

export function makeNode(name: string, changes: Partial<SnapshotNode> = {}): SnapshotNode {
  return {
    id: `nod-${name}` as NodeId,
    role: 'worker',
    health: 'ready',
    cordoned: false,
    labels: {},
    capacity: { cpuMilli: 8_000, memoryMiB: 16_384, diskMiB: 100_000, sandboxes: 64, sandboxOverheadMiB: 32 },
    used: { cpuMilli: 0, memoryMiB: 0, diskMiB: 0, sandboxes: 0 },
    version: 1,
    ...changes,
  };
}

export function makeWork(name: string, changes: Partial<PendingAllocation> = {}): PendingAllocation {
  return {
    allocationId: `alc-${name}` as AllocationId,
    jobId: `job-${name}` as JobId,
    tenantId: 'ten-1' as TenantId,
    index: 0,
    resources: { cpuMilli: 1_000, memoryMiB: 256, diskMiB: 1_024 },
    nodeLabels: {},
    jobNodes: [],
    ...changes,
  };
}

/** Equal nodes, named by number. */
export const makeNodes = (count: number, changes: Partial<SnapshotNode> = {}): SnapshotNode[] =>
  Array.from({ length: count }, (_, n) => makeNode(`${n}`, changes));

const anyLabels = fc.dictionary(fc.constantFrom('zone', 'disk'), fc.constantFrom('a', 'b'), { maxKeys: 2 });

const anyNodeParts = fc.record({
  role: fc.constantFrom('worker', 'worker', 'worker', 'control', 'system'),
  health: fc.constantFrom('ready', 'ready', 'ready', 'suspect', 'down'),
  cordoned: fc.constantFrom(false, false, false, true),
  labels: anyLabels,
  capacity: fc.record({
    cpuMilli: fc.nat(8_000),
    memoryMiB: fc.nat(4_096),
    diskMiB: fc.nat(8_192),
    sandboxes: fc.nat(6),
    sandboxOverheadMiB: fc.nat(64),
  }),
  usedShare: fc.nat(100),
  version: fc.nat(1_000),
});

/** Up to `maxLength` nodes of all kinds, none used beyond its capacity. */
export const anyNodes = (maxLength: number): fc.Arbitrary<SnapshotNode[]> =>
  fc.array(anyNodeParts, { maxLength }).map((all) =>
    all.map(({ usedShare, ...parts }, n) => {
      const part = (amount: number): number => Math.floor((amount * usedShare) / 100);
      const { cpuMilli, memoryMiB, diskMiB, sandboxes } = parts.capacity;
      const used = {
        cpuMilli: part(cpuMilli),
        memoryMiB: part(memoryMiB),
        diskMiB: part(diskMiB),
        sandboxes: part(sandboxes),
      };
      return makeNode(`${n}`, { ...parts, used } as Partial<SnapshotNode>);
    }),
  );

const anyWorkParts = fc.record({
  job: fc.nat(4),
  resources: fc.record({
    cpuMilli: fc.integer({ min: 50, max: 3_000 }),
    memoryMiB: fc.integer({ min: 96, max: 1_024 }),
    diskMiB: fc.integer({ min: 8, max: 2_048 }),
  }),
  nodeLabels: fc.oneof({ weight: 3, arbitrary: fc.constant({}) }, { weight: 1, arbitrary: anyLabels }),
});

/** Up to `maxLength` allocations of up to five jobs, some of which have instances on the nodes already. */
export const anyPending = (maxLength: number): fc.Arbitrary<PendingAllocation[]> =>
  fc
    .tuple(
      fc.array(anyWorkParts, { maxLength }),
      fc.array(fc.array(fc.nat(12), { maxLength: 4 }), { minLength: 5, maxLength: 5 }),
    )
    .map(([all, held]) =>
      all.map(({ job, ...parts }, n) => {
        const jobNodes = (held[job] ?? []).map((node) => `nod-${node}` as NodeId);
        return makeWork(`${n}`, { jobId: `job-${job}` as JobId, index: n, jobNodes, ...parts });
      }),
    );
