// Bulk: attach, exec, logs, pulls, with a real client at one end and the real link at the other.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { ClientRequest } from 'node:http';
import { request } from 'node:https';
import { test } from 'node:test';
import { CHANNEL } from '@cloister/model/stream.ts';
import type { WebSocket } from 'ws';
import { type AgentOptions, startTestCluster, type TestCluster } from './harness.ts';
import type { Frames } from './sessions.ts';

const limit = { timeout: 60_000 };
type Serve = NonNullable<AgentOptions['onStream']>;

interface Received {
  readonly stdout: string;
  readonly stderr: string;
  readonly control: { type: string; [key: string]: unknown }[];
}

async function receive(socket: WebSocket): Promise<Received> {
  const chunks: Record<number, Buffer[]> = { 1: [], 2: [], 3: [] };
  socket.on('message', (data: Buffer) => chunks[data[0]!]!.push(data.subarray(1)));
  await new Promise((resolve) => socket.on('close', resolve));
  const text = (channel: number): string => Buffer.concat(chunks[channel]!).toString();
  return {
    stdout: text(1),
    stderr: text(2),
    control: chunks[3]!.map((chunk) => JSON.parse(chunk.toString())),
  };
}

const output = (text: string, channel: number = CHANNEL.stdout) =>
  ({ frame: 'output', output: { channel, atMs: 5, data: Buffer.from(text) } }) as const;
const control = (value: unknown) => ({ frame: 'controlJson', controlJson: JSON.stringify(value) }) as const;
const frame = (channel: number, text: string): Buffer =>
  Buffer.concat([Buffer.from([channel]), Buffer.from(text)]);

test('an attach before the start waits, then carries output, input, and the exit', limit, async () => {
  await using cluster = await startTestCluster();
  const { allocations } = await cluster.run({ stdin: true });
  const socket = await cluster.open(`/v1/allocations/${allocations[0]!.id}/attach?stdin=true`);
  const received = receive(socket);
  socket.send(frame(CHANNEL.stdin, 'early'));
  socket.send(frame(CHANNEL.control, '{"type":"stdin-eof"}'));
  const echo: Serve = async (frames, asked) => {
    assert.ok(asked.purpose === 'attach' && asked.attach.stdin);
    await frames.write(output('hello '));
    for await (const next of frames) {
      if (next.frame === 'stdin') await frames.write(output(next.stdin.toString(), CHANNEL.stderr));
      if (next.frame === 'controlJson') break;
    }
    await frames.write(control({ type: 'exit', exitCode: 4 }));
  };
  await cluster.newAgent('one', { onStream: echo });
  assert.deepEqual(await received, {
    stdout: 'hello ',
    stderr: 'early',
    control: [{ type: 'exit', exitCode: 4 }],
  });
});

test("an attach survives the agent's connection and repeats nothing", limit, async () => {
  await using cluster = await startTestCluster();
  let attaches = 0;
  const agent = await cluster.newAgent('one', {
    onStream: async (frames, _asked, self) => {
      attaches += 1;
      await frames.write(output('first '));
      if (attaches === 1) {
        await frames[Symbol.asyncIterator]().next(); // the client has it: it said so
        self.disconnect();
        await self.connect();
        return;
      }
      await frames.write(output('second'));
      await frames.write(control({ type: 'exit', exitCode: 0 }));
    },
  });
  const { id } = (await cluster.run({ stdin: true })).allocations[0]!;
  await cluster.whenAllocation(id, ({ state }) => state === 'running');
  const socket = await cluster.open(`/v1/allocations/${id}/attach?stdin=true`);
  socket.once('message', () => socket.send(frame(CHANNEL.stdin, 'got it')));
  assert.deepEqual(await receive(socket), {
    stdout: 'first second',
    stderr: '',
    control: [{ type: 'exit', exitCode: 0 }],
  });
  assert.equal(attaches, 2);
  agent.disconnect();
});

test('an attach says that the node is down when it stays away', limit, async () => {
  await using cluster = await startTestCluster({ nodeDownAfterMs: 200 });
  const agent = await cluster.newAgent('one', {
    onStream: async (frames, _asked, self) => {
      await frames.write(output('x'));
      await frames[Symbol.asyncIterator]().next();
      self.disconnect();
    },
  });
  const { id } = (await cluster.run({ stdin: true })).allocations[0]!;
  await cluster.whenAllocation(id, ({ state }) => state === 'running');
  const socket = await cluster.open(`/v1/allocations/${id}/attach?stdin=true`);
  socket.once('message', () => socket.send(frame(CHANNEL.stdin, 'go')));
  const { control: said } = await receive(socket);
  assert.equal((said[0] as unknown as { reason: { code: string } }).reason.code, 'node.down');
  agent.disconnect();
});

test('an attach to what has ended replays its output; without a machine it says why', limit, async () => {
  await using cluster = await startTestCluster();
  const agent = await cluster.newAgent('one', { onStream: async (frames) => frames.write(output('old')) });
  const { id } = (await cluster.run({})).allocations[0]!;
  await cluster.whenAllocation(id, ({ state }) => state === 'running');
  await agent.report(id, 'exited', { exitCode: 7, oomKilled: true });
  await cluster.whenAllocation(id, ({ state }) => state === 'exited');
  const replay = await receive(await cluster.open(`/v1/allocations/${id}/attach`));
  assert.deepEqual(replay, {
    stdout: 'old',
    stderr: '',
    control: [{ type: 'exit', exitCode: 7, oomKilled: true }],
  });

  const never = await cluster.run({ name: 'never', nodeLabels: { no: 'where' } });
  const waiting = receive(await cluster.open(`/v1/allocations/${never.allocations[0]!.id}/attach`));
  await cluster.call('POST', '/v1/jobs/never/kill');
  assert.equal((await waiting).control[0]?.type, 'error');
});

test(
  '50 MB to a client that does not read wait at the agent; input floods wait at the client',
  limit,
  async () => {
    await using cluster = await startTestCluster();
    const chunk = 'x'.repeat(65_536);
    let written = 0;
    let taken = 0;
    const go = Promise.withResolvers<void>();
    await cluster.newAgent('one', {
      onStream: async (frames: Frames) => {
        for (; written < 800; written++) await frames.write(output(chunk));
        await go.promise;
        for await (const next of frames) {
          if (next.frame === 'stdin') taken += next.stdin.length;
          if (next.frame === 'controlJson') break;
        }
        await frames.write(control({ type: 'exit', exitCode: 0 }));
      },
    });
    const { id } = (await cluster.run({ stdin: true })).allocations[0]!;
    await cluster.whenAllocation(id, ({ state }) => state === 'running');
    const socket = await cluster.open(`/v1/allocations/${id}/attach?stdin=true`);
    socket.pause();
    const stuckAt = await whenStill(() => written);
    assert.ok(stuckAt < 300, `${stuckAt} chunks were taken though the client does not read`);
    socket.resume();
    const received = receive(socket);
    for (let sent = 0; sent < 400; sent++) socket.send(frame(CHANNEL.stdin, chunk));
    await whenStill(() => written);
    const waitingAtClient = await whenStill(() => socket.bufferedAmount);
    assert.ok(waitingAtClient > 10_000_000, `${waitingAtClient} bytes wait at the client`);
    socket.send(frame(CHANNEL.control, '{"type":"stdin-eof"}'));
    go.resolve();
    assert.equal((await received).stdout.length, 800 * chunk.length);
    assert.equal(taken, 400 * chunk.length);
  },
);

test(
  'exec carries its spec with defaults; a client that breaks the protocol is told and left',
  limit,
  async () => {
    await using cluster = await startTestCluster();
    await cluster.newAgent('one', {
      onStream: async (frames, asked) => {
        assert.ok(asked.purpose === 'exec');
        await frames.write(output(asked.exec.specJson));
        await frames.write(control({ type: 'exit', exitCode: 0 }));
      },
    });
    const { id } = (await cluster.run({})).allocations[0]!;
    await cluster.whenAllocation(id, ({ state }) => state === 'running');
    const exec = async (first: string | Buffer): Promise<Received> => {
      const socket = await cluster.open(`/v1/allocations/${id}/exec`);
      const received = receive(socket);
      socket.send(first);
      return await received;
    };
    const { stdout } = await exec('{"command":["ls"]}');
    assert.deepEqual(JSON.parse(stdout), {
      command: ['ls'],
      env: {},
      tty: false,
      stdin: false,
      rows: 0,
      columns: 0,
    });
    for (const wrong of ['{"command":[]}', '{"command":["a"],"root":true}', 'x', Buffer.from([1, 2])]) {
      assert.equal((await exec(wrong)).control[0]?.type, 'error');
    }
    await assert.rejects(
      cluster.open(`/v1/allocations/${id}/exec`, await cluster.newTenant('bob')),
      /404 .*not-found/,
    );
    await assert.rejects(cluster.open(`/v1/allocations/${id}/attach`, 'nobody'), /401 .*auth.invalid/);
    const { allocations } = await cluster.run({ nodeLabels: { no: 'where' } });
    await assert.rejects(cluster.open(`/v1/allocations/${allocations[0]!.id}/exec`), /409 .*state.wrong/);
  },
);

test('logs and pulls are NDJSON', limit, async () => {
  await using cluster = await startTestCluster();
  const progress = { reference: 'busybox', nodeId: `nod-${'a'.repeat(26)}`, fetchedBytes: 1, totalBytes: 1 };
  const agent = await cluster.newAgent('one', {
    onStream: async (frames, asked) => {
      if (asked.purpose === 'logs') {
        assert.equal(asked.logs.tailLines, 2);
        assert.equal(asked.logs.tailBytes, undefined);
        await frames.write(output('a\n'));
        await frames.write(output('b\n', CHANNEL.stderr));
      } else {
        await frames.write({
          frame: 'progressJson',
          progressJson: JSON.stringify({ ...progress, stage: 'fetching' }),
        });
        await frames.write({
          frame: 'progressJson',
          progressJson: JSON.stringify({ ...progress, stage: 'done', digest: 'sha256:1' }),
        });
      }
    },
  });
  const { id } = (await cluster.run({})).allocations[0]!;
  await cluster.whenAllocation(id, ({ state }) => state === 'running');
  const lines = [];
  for await (const line of cluster.lines(`/v1/allocations/${id}/logs?tailLines=2`)) lines.push(line);
  assert.deepEqual(lines, [
    { at: 5, stream: 'stdout', data: 'YQo=' },
    { at: 5, stream: 'stderr', data: 'Ygo=' },
  ]);
  const image = { reference: 'r', digest: 'sha256:1', sizeBytes: 1, blockBytes: 1, pulledAt: 1 };
  await agent.session!.send({
    message: 'images',
    images: { imageJson: [JSON.stringify({ ...image, nodeId: '' }), 'junk'] },
  });
  await agent.report(id, 'exited', { exitCode: 0 });
  await cluster.whenAllocation(id, ({ state }) => state === 'exited');
  const { images } = (await cluster.call('GET', '/v1/images')).body;
  assert.deepEqual(images, [{ ...image, nodeId: agent.identity.nodeId }]);
  const bob = await cluster.newTenant('bob');
  assert.deepEqual(
    (await cluster.call('GET', '/v1/images', undefined, bob)).body.images,
    [],
    "others' images are not listed",
  );
});

test('logs that nobody waits for any more when the node opens their stream are ended', limit, async () => {
  await using cluster = await startTestCluster({ maxStreamsPerTenant: 1, heartbeatIntervalMs: 60_000 });
  const asked = Promise.withResolvers<void>();
  const open = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<void>();
  await cluster.newAgent('one', {
    beforeStream: async () => {
      asked.resolve();
      await open.promise;
    },
    onStream: async (frames) => {
      await frames.closed;
      ended.resolve();
    },
  });
  const { id } = (await cluster.run({})).allocations[0]!;
  await cluster.whenAllocation(id, ({ state }) => state === 'running');
  const client = get(cluster, `/v1/allocations/${id}/logs?follow=true`);
  client.on('error', () => {}); // it leaves before the answer is over
  await asked.promise;
  client.destroy();
  for (let left = false; !left; ) {
    const [response] = await once(get(cluster, '/v1/events'), 'response');
    response.resume();
    left = response.statusCode === 200; // there is room for a stream again: the server noticed
  }
  open.resolve();
  await ended.promise;
});

test('a stream has the headers of every reply, before its first line', limit, async () => {
  await using cluster = await startTestCluster();
  const client = get(cluster, '/v1/events?follow=true&after=1000000');
  const [{ statusCode, headers }] = await once(client, 'response');
  client.destroy();
  assert.equal(statusCode, 200);
  const { 'content-type': type, 'x-content-type-options': sniffing, 'cache-control': caching } = headers;
  assert.deepEqual([type, sniffing, caching], ['application/x-ndjson', 'nosniff', 'no-store']);
  assert.match(headers['strict-transport-security'], /^max-age=/);
});

function get(cluster: TestCluster, path: string): ClientRequest {
  const headers = { authorization: `Bearer ${cluster.operator}` };
  const sent = request(`https://${cluster.server.apiAddress}${path}`, {
    ca: cluster.caPem,
    agent: false,
    headers,
  });
  sent.end();
  return sent;
}

/** The value once it has not changed for 20 turns of 10 ms: there is no event for "stuck". */
async function whenStill(read: () => number): Promise<number> {
  let last = -1;
  for (let still = 0; still < 20; ) {
    await new Promise((resolve) => setTimeout(resolve, 10));
    const now = read();
    still = now === last ? still + 1 : 0;
    last = now;
  }
  return last;
}
