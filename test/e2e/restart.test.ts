// kill -9 for the agent and the control plane: what runs goes on, and what was said is not lost.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { EndToEnd } from './fixture.ts';

let e2e: EndToEnd;
before(async () => {
  e2e = await EndToEnd.start();
  await e2e.run({ command: ['true'] }); // the image is on the node
});
after(async () => await e2e[Symbol.asyncDispose]());

const COUNTING = 'i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 7';
const LINES = Array.from({ length: 60 }, (_, i) => `line ${i}\n`).join('');

describe('a running sandbox', () => {
  test('goes on while its agent is killed and started again, and is adopted with all of its output', async () => {
    const id = await e2e.submit({ command: ['sh', '-c', COUNTING] });
    await e2e.until(id, ({ timeline }) => timeline.firstOutputAt !== undefined);
    await e2e.cluster.killAgent();
    await e2e.cluster.startAgent();
    const allocation = await e2e.ended(id);
    assert.deepEqual([allocation.state, allocation.exitCode], ['exited', 7]);
    assert.equal(await e2e.logs(id), LINES);
  });

  test('goes on while the control plane is killed and started again, with its followers', async () => {
    const id = await e2e.submit({ command: ['sh', '-c', COUNTING] });
    await e2e.until(id, ({ timeline }) => timeline.firstOutputAt !== undefined);
    await e2e.cluster.killServer();
    await e2e.cluster.startServer();
    const allocation = await e2e.ended(id);
    assert.deepEqual([allocation.state, allocation.exitCode], ['exited', 7]);
    assert.equal(await e2e.logs(id), LINES);
  });

  test('that ends while its agent is away is told of when that is back', async () => {
    const id = await e2e.submit({ command: ['sh', '-c', 'echo up; sleep 1.5; echo last; exit 3'] });
    await e2e.until(id, ({ timeline }) => timeline.firstOutputAt !== undefined);
    await e2e.cluster.killAgent();
    await new Promise((resolve) => setTimeout(resolve, 3_000));
    await e2e.cluster.startAgent();
    const allocation = await e2e.ended(id);
    assert.deepEqual([allocation.state, allocation.exitCode], ['exited', 3]);
    assert.equal(await e2e.logs(id), 'up\nlast\n');
  });

  test('is attached to again by a client that was there all along', async () => {
    const id = await e2e.submit({ command: ['sh', '-c', COUNTING] });
    const stream = await e2e.cluster.client.attach(id);
    let text = '';
    stream.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
    stream.stderr.resume();
    await e2e.until(id, ({ timeline }) => timeline.firstOutputAt !== undefined);
    await e2e.cluster.killAgent();
    await e2e.cluster.startAgent();
    assert.equal((await stream.exit).exitCode, 7);
    assert.equal(text, LINES);
  });
});

describe('an agent that is killed in the middle of a start', () => {
  for (const afterMs of [5, 30, 60, 100, 200, 600, 1_200, 2_000]) {
    test(`${afterMs} ms into it finishes the start when it is back, and runs the workload once`, async () => {
      const id = await e2e.submit({ command: ['sh', '-c', 'echo ran; exit 4'] });
      await new Promise((resolve) => setTimeout(resolve, afterMs));
      await e2e.cluster.killAgent();
      await e2e.cluster.startAgent();
      const allocation = await e2e.ended(id);
      assert.deepEqual([allocation.state, allocation.exitCode], ['exited', 4], JSON.stringify(allocation));
      assert.equal(await e2e.logs(id), 'ran\n');
    });
  }

  test('while it pulls, pulls again', async () => {
    const image = await e2e.push('slow', {
      files: [{ path: 'big', content: Buffer.alloc(30_000_000, 'x').toString() }],
    });
    const id = await e2e.submit({ image, command: ['true'] });
    await e2e.until(id, ({ state }) => state === 'pulling');
    await e2e.cluster.killAgent();
    await e2e.cluster.startAgent();
    const allocation = await e2e.ended(id);
    assert.deepEqual([allocation.state, allocation.exitCode], ['exited', 0], JSON.stringify(allocation));
  });
});

test('what was stopped while the agent was away ends when it is back', async () => {
  const id = await e2e.submit({ name: 'away', command: ['sh', '-c', 'echo up; sleep 1000'] });
  await e2e.until(id, ({ timeline }) => timeline.firstOutputAt !== undefined);
  await e2e.cluster.killAgent();
  await e2e.cluster.client.killJob('away');
  await e2e.cluster.startAgent();
  const allocation = await e2e.ended(id);
  assert.deepEqual([allocation.state, allocation.exitCode, allocation.signal], ['exited', 137, 9]);
});
