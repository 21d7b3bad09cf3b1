// Standard input of one process, written to by clients that come and go.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { InputTurns } from './input.ts';

test('writers take turns, and one who leaves before its turn has written nothing', async () => {
  const turns = new InputTurns<object>();
  const target = {};
  const stays = new AbortController().signal;
  const leaves = new AbortController();
  const stuck = Promise.withResolvers<void>();
  const order: string[] = [];
  const write = (name: string) => async () => void order.push(name);
  const first = turns.take(target, () => stuck.promise, stays);
  const second = turns.take(target, write('second'), leaves.signal);
  const third = turns.take(target, write('third'), stays);
  const other = turns.take({}, write('other'), stays);
  await other; // another process's input is not held up
  leaves.abort();
  await second;
  assert.deepEqual(order, ['other']);
  stuck.resolve();
  await Promise.all([first, third]);
  assert.deepEqual(order, ['other', 'third']);
});

test('a write that fails, even one whose client has left, lets the next have its turn', async () => {
  const turns = new InputTurns<object>();
  const target = {};
  const stays = new AbortController().signal;
  const failing = turns.take(target, () => Promise.reject(new Error('at its end')), stays);
  const next = turns.take(target, async () => {}, stays);
  await assert.rejects(failing, /at its end/);
  await next;
  await turns.take(target, async () => {}, AbortSignal.abort());
});
