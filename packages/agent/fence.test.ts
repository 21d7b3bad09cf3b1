// When a node gives up its services: after one unbroken time without a session, by a clock that does not jump.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '@cloister/kit/clock.ts';
import { Fence } from './fence.ts';

function open(afterMs: number): { fence: Fence; clock: ManualClock; fenced: () => number } {
  const clock = new ManualClock();
  let count = 0;
  const fence = new Fence({
    afterMs,
    clock,
    onFence: () => {
      count += 1;
    },
  });
  return { fence, clock, fenced: () => count };
}

test('an agent that never had a session fences as one that lost it', async () => {
  const { clock, fenced } = open(1_000);
  await clock.advance(999);
  assert.equal(fenced(), 0);
  await clock.advance(1);
  assert.equal(fenced(), 1);
});

test('each failed attempt is part of the same loss, and a session begins it anew', async () => {
  const { fence, clock, fenced } = open(1_000);
  for (let i = 0; i < 3; i++) {
    await clock.advance(300);
    fence.sessionLost();
  }
  fence.sessionBegan();
  await clock.advance(5_000);
  assert.equal(fenced(), 0);
  fence.sessionLost();
  await clock.advance(500);
  fence.sessionLost();
  await clock.advance(500);
  assert.equal(fenced(), 1);
});

test('by default nothing is ever fenced', async () => {
  const { clock, fenced } = open(0);
  await clock.advance(1_000_000_000);
  assert.equal(fenced(), 0);
});
