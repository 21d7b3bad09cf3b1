// Who runs when more want to than may.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { Limiter, type LimiterOptions } from './limiter.ts';

/** `begin("a1")` wants to run for the group "a", until `end("a1")`. */
function setUp(atOnce: number, options?: LimiterOptions) {
  const limiter = new Limiter(atOnce, options);
  const running = new Map<string, () => void>();
  const begin = (name: string, signal?: AbortSignal): Promise<void> =>
    limiter.run(
      async () => {
        const { promise, resolve } = Promise.withResolvers<void>();
        running.set(name, resolve);
        await promise;
        running.delete(name);
      },
      signal,
      name[0],
    );
  const end = async (name: string): Promise<void> => {
    running.get(name)!();
    await setImmediate();
  };
  return { begin, end, running: () => [...running.keys()].sort() };
}

test('a group never has more than its part, even when nobody else wants any', async () => {
  const { begin, end, running } = setUp(4, { perGroup: 2 });
  const all = ['a1', 'a2', 'a3', 'b1', 'b2', 'c1'].map(async (name) => await begin(name));
  await setImmediate();
  assert.deepEqual(running(), ['a1', 'a2', 'b1', 'b2']);
  await end('b1');
  assert.deepEqual(running(), ['a1', 'a2', 'b2', 'c1']);
  await end('a2');
  assert.deepEqual(running(), ['a1', 'a3', 'b2', 'c1']);
  for (const name of running()) await end(name);
  await Promise.all(all);
});

test('groups take turns, however many of one are waiting', async () => {
  const { begin, end, running } = setUp(1);
  const all = ['a1', 'a2', 'a3', 'a4', 'b1', 'b2', 'c1'].map(async (name) => await begin(name));
  const order: string[] = [];
  for (const _ of all) {
    await setImmediate();
    const [name = ''] = running();
    order.push(name);
    await end(name);
  }
  await Promise.all(all);
  assert.deepEqual(order, ['a1', 'a2', 'b1', 'c1', 'a3', 'b2', 'a4']);
});

test('who is cancelled while waiting takes no turn, and too many of a group are refused', async () => {
  const { begin, end, running } = setUp(1, { maxWaiting: 1 });
  const first = begin('a1');
  const cancelled = new AbortController();
  const gone = begin('b1', cancelled.signal);
  await assert.rejects(begin('b2'), { code: 'limit.exceeded' });
  cancelled.abort(new Error('enough'));
  await assert.rejects(gone, { message: 'enough' });
  const next = begin('c1');
  await end('a1');
  assert.deepEqual(running(), ['c1']);
  await end('c1');
  await Promise.all([first, next]);
});
