// The laws of a plan, for any cluster and any work.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JobId } from '@cloister/model/ids.ts';
import fc from 'fast-check';
import { anyNodes, anyPending, makeNode, makeNodes, makeWork } from './fixtures.ts';
import { type Plan, plan } from './plan.ts';
import { PREDICATES } from './predicates.ts';
import { chargeOf, type PendingAllocation, type SnapshotNode } from './snapshot.ts';

const NOW_MS = 1_000;

function check(property: (nodes: SnapshotNode[], pending: PendingAllocation[], result: Plan) => void): void {
  fc.assert(
    fc.property(anyNodes(12), anyPending(40), (nodes, pending) => {
      property(nodes, pending, plan({ nodes }, pending, NOW_MS));
    }),
    { numRuns: 300 },
  );
}

/** How many placements each node got, nodes without any included. */
function countByNode(nodes: readonly SnapshotNode[], { placements }: Plan): number[] {
  return nodes.map(({ id }) => placements.filter(({ nodeId }) => nodeId === id).length);
}

test('no node ever gets more than its capacity', () => {
  check((nodes, pending, { placements }) => {
    for (const node of nodes) {
      const used = { ...node.used };
      for (const { allocationId } of placements.filter(({ nodeId }) => nodeId === node.id)) {
        const charge = chargeOf(
          pending.find((work) => work.allocationId === allocationId)!.resources,
          node.capacity,
        );
        for (const what of ['cpuMilli', 'memoryMiB', 'diskMiB', 'sandboxes'] as const)
          used[what] += charge[what];
      }
      for (const what of ['cpuMilli', 'memoryMiB', 'diskMiB', 'sandboxes'] as const) {
        assert.ok(
          used[what] <= node.capacity[what],
          `${node.id} has ${used[what]} of ${node.capacity[what]} ${what}`,
        );
      }
    }
  });
});

test('work only goes to ready workers that are not cordoned and have its labels', () => {
  check((nodes, pending, { placements }) => {
    for (const { nodeId, nodeVersion, allocationId } of placements) {
      const node = nodes.find(({ id }) => id === nodeId)!;
      assert.deepEqual(
        [node.role, node.health, node.cordoned, node.version],
        ['worker', 'ready', false, nodeVersion],
      );
      const { nodeLabels } = pending.find((work) => work.allocationId === allocationId)!;
      assert.deepEqual({ ...node.labels, ...nodeLabels }, { ...node.labels });
    }
  });
});

test('all work is either placed or told why not, once, in its order', () => {
  check((nodes, pending, { placements, unplaced, plannedAtMs }) => {
    const placed = new Set(placements.map(({ allocationId }) => allocationId));
    const ids = pending.map(({ allocationId }) => allocationId);
    assert.deepEqual(
      placements.map(({ allocationId }) => allocationId),
      ids.filter((id) => placed.has(id)),
    );
    assert.deepEqual(
      unplaced.map(({ allocationId }) => allocationId),
      ids.filter((id) => !placed.has(id)),
    );
    for (const { reasons, message } of unplaced) {
      assert.equal(
        reasons.reduce((sum, reason) => sum + reason.nodes, 0),
        nodes.length,
      );
      for (const reason of reasons) {
        assert.ok(PREDICATES.some(({ name }) => name === reason.predicate));
        assert.ok(message.includes(reason.message));
      }
    }
    assert.equal(plannedAtMs, NOW_MS);
  });
});

test('first come, first served: work is not displaced by what comes after it', () => {
  check((nodes, pending, { unplaced }) => {
    for (const { allocationId } of unplaced) {
      const work = pending.find((other) => other.allocationId === allocationId)!;
      const before = pending.slice(0, pending.indexOf(work));
      const alone = plan({ nodes }, [...before, work], NOW_MS);
      assert.equal(alone.unplaced.at(-1)?.allocationId, allocationId);
    }
  });
});

test('the same question has the same answer, whatever the order of the nodes', () => {
  check((nodes, pending, result) => {
    const input = JSON.stringify({ nodes, pending });
    assert.deepEqual(plan({ nodes: nodes.toReversed() }, pending, NOW_MS), result);
    assert.equal(JSON.stringify({ nodes, pending }), input, 'what went in was changed');
  });
});

test('equal nodes get equal work, within one allocation', () => {
  const anyCounts = fc.record({
    nodes: fc.integer({ min: 1, max: 20 }),
    work: fc.nat(60),
    oneJob: fc.boolean(),
  });
  fc.assert(
    fc.property(anyCounts, ({ nodes: nodeCount, work, oneJob }) => {
      const nodes = makeNodes(nodeCount);
      const pending = Array.from({ length: work }, (_, n) =>
        makeWork(`${n}`, oneJob ? { jobId: 'job-1' as JobId } : {}),
      );
      const result = plan({ nodes }, pending, NOW_MS);
      const counts = countByNode(nodes, result);
      assert.ok(Math.max(...counts) - Math.min(...counts) <= 1, counts.join(' '));
      assert.equal(result.placements.length, Math.min(work, nodeCount * 8)); // 8 CPUs a node
    }),
  );
});

test('the emptier node is filled first, by the resource that is scarcest', () => {
  const nodes = (cpuMilli: number, memoryMiB: number): SnapshotNode[] => [
    makeNode('cpu', { used: { cpuMilli, memoryMiB: 0, diskMiB: 0, sandboxes: 4 } }),
    makeNode('memory', { used: { cpuMilli: 0, memoryMiB, diskMiB: 0, sandboxes: 4 } }),
  ];
  const chosen = (cpuMilli: number, memoryMiB: number): string | undefined =>
    plan({ nodes: nodes(cpuMilli, memoryMiB) }, [makeWork('1')], NOW_MS).placements[0]?.nodeId;
  assert.equal(chosen(4_000, 12_288), 'nod-cpu');
  assert.equal(chosen(6_000, 4_096), 'nod-memory');
});

test("a job's instances go to different nodes before they go to the emptiest", () => {
  const busy = makeNode('busy', { used: { cpuMilli: 5_000, memoryMiB: 4_096, diskMiB: 0, sandboxes: 5 } });
  const idle = makeNode('idle');
  const job = { jobId: 'job-1' as JobId, jobNodes: [idle.id] };
  const { placements } = plan(
    { nodes: [busy, idle] },
    [makeWork('1', job), makeWork('2', job), makeWork('3')],
    NOW_MS,
  );
  assert.deepEqual(
    placements.map(({ nodeId }) => nodeId),
    [busy.id, idle.id, idle.id],
  );
});

test('schedulers that each place one allocation do not all choose the same of equal nodes', () => {
  const nodes = makeNodes(10);
  const counts = new Map<string, number>();
  for (let n = 0; n < 1_000; n++) {
    const nodeId = plan({ nodes }, [makeWork(`${n}`)], NOW_MS).placements[0]!.nodeId;
    counts.set(nodeId, (counts.get(nodeId) ?? 0) + 1);
  }
  assert.equal(counts.size, 10);
  for (const [nodeId, count] of counts)
    assert.ok(count > 50 && count < 150, `${nodeId} was chosen ${count} of 1,000 times`);
});

test('with no room left, a user is told how many nodes were ruled out by what', () => {
  const full = { used: { cpuMilli: 0, memoryMiB: 16_200, diskMiB: 0, sandboxes: 5 } };
  const nodes = [
    makeNode('0', { role: 'control' }),
    makeNode('1', { health: 'down' }),
    makeNode('2', full),
    makeNode('3', full),
  ];
  const [unplaced] = plan({ nodes }, [makeWork('1')], NOW_MS).unplaced;
  assert.deepEqual(
    unplaced?.reasons.map(({ predicate, nodes: count }) => [predicate, count]),
    [
      ['role', 1],
      ['health', 1],
      ['memory', 2],
    ],
  );
  assert.equal(
    unplaced?.message,
    'No node can take it: 1 node is not a worker; 1 node is not ready; ' +
      '2 nodes have less than 256 MiB of memory, and what a sandbox takes beyond it, free.',
  );
  assert.equal(
    plan({ nodes: [] }, [makeWork('1')], NOW_MS).unplaced[0]?.message,
    'No node can take it: the cluster has no nodes.',
  );
});
