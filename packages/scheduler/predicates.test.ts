// Each predicate alone: a node that passes, and ones that do not.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeCandidates } from './candidate.ts';
import { makeNode, makeWork } from './fixtures.ts';
import { PREDICATES } from './predicates.ts';
import type { PendingAllocation, SnapshotNode } from './snapshot.ts';

/** The names of all predicates that rule the node out. */
function ruledOutBy(node: Partial<SnapshotNode>, work: Partial<PendingAllocation> = {}): string[] {
  const allocation = makeWork('1', work);
  const [candidate] = makeCandidates({ nodes: [makeNode('1', node)] }, [allocation]);
  return PREDICATES.filter(({ allows }) => !allows(candidate!, allocation)).map(({ name }) => name);
}

const capacity = { cpuMilli: 1_000, memoryMiB: 288, diskMiB: 1_024, sandboxes: 1, sandboxOverheadMiB: 32 };

test('a node that is just large enough passes them all', () => {
  assert.deepEqual(ruledOutBy({ capacity }), []);
});

test('one thing too little of one resource is ruled out by that resource', () => {
  assert.deepEqual(ruledOutBy({ capacity: { ...capacity, cpuMilli: 999 } }), ['cpu']);
  assert.deepEqual(ruledOutBy({ capacity: { ...capacity, memoryMiB: 287 } }), ['memory']);
  assert.deepEqual(ruledOutBy({ capacity: { ...capacity, diskMiB: 1_023 } }), ['disk']);
  assert.deepEqual(ruledOutBy({ capacity: { ...capacity, sandboxes: 0 } }), ['sandboxes']);
});

test('what is used already does not count as free', () => {
  const used = { cpuMilli: 1, memoryMiB: 1, diskMiB: 1, sandboxes: 1 };
  assert.deepEqual(ruledOutBy({ capacity, used }), ['sandboxes', 'cpu', 'memory', 'disk']);
});

test('only ready workers that are not cordoned pass', () => {
  assert.deepEqual(ruledOutBy({ role: 'control' }), ['role']);
  assert.deepEqual(ruledOutBy({ role: 'system' }), ['role']);
  assert.deepEqual(ruledOutBy({ health: 'suspect' }), ['health']);
  assert.deepEqual(ruledOutBy({ health: 'down' }), ['health']);
  assert.deepEqual(ruledOutBy({ cordoned: true }), ['cordon']);
});

test('all labels must be there with their values, and more do no harm', () => {
  const labels = { zone: 'a', disk: 'ssd' };
  assert.deepEqual(ruledOutBy({ labels }, { nodeLabels: { zone: 'a' } }), []);
  assert.deepEqual(ruledOutBy({ labels }, { nodeLabels: { zone: 'b' } }), ['labels']);
  assert.deepEqual(ruledOutBy({ labels }, { nodeLabels: { zone: 'a', gpu: 'yes' } }), ['labels']);
  assert.deepEqual(ruledOutBy({ labels }, { nodeLabels: { toString: '' } }), ['labels']);
});
