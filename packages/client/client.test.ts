// The client against a server that answers by the API table.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, beforeEach, describe, it, mock } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ApiError } from './apiError.ts';
import { CloisterClient } from './client.ts';
import { makePath } from './routes.ts';
import { TestServer } from './testServer.ts';
import { floodChunks } from './testWorkloads.ts';

describe('CloisterClient', { timeout: 60_000 }, () => {
  let server: TestServer;
  let client: CloisterClient;
  before(async () => {
    server = await TestServer.start();
    client = new CloisterClient(server);
  });
  after(async () => {
    client.close();
    await server.close();
  });
  beforeEach(() => {
    server.jobs.length = 0;
    server.intercept = undefined;
  });

  const refusal = async (promise: Promise<unknown>): Promise<ApiError> => {
    const error = await promise.then(
      () => assert.fail('it was not refused'),
      (cause: unknown) => cause,
    );
    assert.ok(error instanceof ApiError, String(error));
    return error;
  };

  it('runs, lists, reads, stops and removes a job', async () => {
    const { job, allocations } = await client.createJob({
      image: 'busybox',
      name: 'web',
      command: ['sleep'],
    });
    assert.equal(allocations[0]?.jobId, job.id);
    assert.equal((await client.listJobs({ state: 'active' })).jobs.length, 1);
    assert.equal((await client.getJob('web')).job.spec.resources.memoryMiB, 256);
    assert.equal((await client.stopJob('web', { graceMs: 5 })).job.state, 'done');
    await client.removeJob('web');
    assert.deepEqual((await client.listJobs()).jobs, []);
  });

  it('throws the code, the words, the hint and the fields of a problem', async () => {
    const error = await refusal(client.createJob({ image: '', count: 0 }));
    assert.equal(error.code, 'request.invalid');
    assert.equal(error.status, 422);
    assert.match(error.hint, /Correct the fields/);
    assert.ok(
      error.fields.some(({ path }) => path === '/image'),
      JSON.stringify(error.fields),
    );
    assert.equal((await refusal(client.getJob('nothing'))).code, 'not-found');
  });

  it('keeps the token out of its errors', async () => {
    const wrong = new CloisterClient({
      ...server,
      url: server.url,
      caPem: server.caPem,
      token: 'wrong-secret',
    });
    const error = await refusal(wrong.whoami());
    assert.equal(error.code, 'auth.invalid');
    assert.doesNotMatch(
      JSON.stringify({ ...error, message: error.message, stack: error.stack }),
      /wrong-secret/,
    );
    assert.throws(
      () => new CloisterClient({ url: server.url, caPem: server.caPem, token: 'se\ncret' }),
      (cause: Error) => !cause.message.includes('se\n'),
    );
    assert.throws(
      () => new CloisterClient({ url: 'https://user:pass@host:1', caPem: '', token: 'x' }),
      (cause: Error) => !cause.message.includes('pass'),
    );
    wrong.close();
  });

  it('trusts no certificate authority but the one of the cluster', async () => {
    const other = await TestServer.start();
    const stranger = new CloisterClient({ url: other.url, caPem: server.caPem, token: other.token });
    const error = await refusal(stranger.health());
    assert.match(error.hint, /CA file/);
    assert.deepEqual(other.requests, []);
    stranger.close();
    await other.close();
  });

  it('never follows a redirect', async () => {
    server.intercept = (_request, response) =>
      response.writeHead(307, { location: `${server.url}/elsewhere` }).end() && true;
    const before = server.requests.length;
    assert.match((await refusal(client.health())).message, /redirect/);
    assert.equal(server.requests.length, before);
  });

  it('gives up on a server that does not answer', async () => {
    server.intercept = () => true;
    const hasty = new CloisterClient({
      url: server.url,
      caPem: server.caPem,
      token: server.token,
      timeoutMs: 50,
    });
    assert.match((await refusal(hasty.health())).message, /did not answer within/);
    hasty.close();
  });

  it('throws the reason of an aborted signal, from calls, streams and sockets', async () => {
    const record = server.addJob({ image: 'x', command: ['sleep'] });
    const reason = new Error('enough');
    const signal = AbortSignal.abort(reason);
    await assert.rejects(client.health({ signal }), reason);
    await assert.rejects(client.logs(record.allocation.id, {}, { signal }).next(), reason);
    await assert.rejects(client.attach(record.allocation.id, {}, { signal }), reason);
    const later = new AbortController();
    const workload = await client.attach(record.allocation.id, {}, { signal: later.signal });
    await workload.started;
    later.abort(reason);
    await assert.rejects(workload.exit, reason);
  });

  it('reads a stream no faster than its consumer, and closes it when the consumer leaves', async () => {
    let written = 0;
    const closed = Promise.withResolvers<void>();
    server.intercept = (_request, response) => {
      response.writeHead(200);
      response.once('close', () => closed.resolve());
      const line = `${JSON.stringify({ data: 'x'.repeat(60_000) })}\n`;
      const write = () => {
        while (written < 200_000_000) {
          written += line.length;
          if (!response.write(line)) return void response.once('drain', write);
        }
        response.end();
      };
      write();
      return true;
    };
    for await (const line of client.logs('any')) {
      assert.equal(line.data.length, 60_000);
      break;
    }
    await closed.promise;
    assert.ok(written < 100_000_000, `${written} bytes were read ahead`);
  });

  it('fails on a stream that breaks off or is no JSON', async () => {
    server.intercept = (_request, response) =>
      response.writeHead(200).end('{"revision":1}\nnonsense\n') && true;
    const events = client.events();
    assert.equal((await events.next()).value?.revision, 1);
    assert.match((await refusal(events.next())).message, /not JSON/);
    server.intercept = (_request, response) => {
      response.writeHead(200, { 'content-length': 1000 }).write('{"revision":1}\n', () => response.destroy());
      return true;
    };
    const broken = client.events();
    await broken.next();
    assert.match((await refusal(broken.next())).message, /broke off/);
  });

  it('hands over output byte for byte, with the exit, and says what was lost', async () => {
    const record = server.addJob({ image: 'x', command: ['both'] });
    const workload = await client.attach(record.allocation.id);
    const gaps: number[] = [];
    workload.onGap = (bytes) => gaps.push(bytes);
    const [stdout, stderr] = await Promise.all([workload.stdout.toArray(), workload.stderr.toArray()]);
    assert.deepEqual(Buffer.concat(stdout), Buffer.from([0, 255, 10, 128]));
    assert.equal(Buffer.concat(stderr).toString(), 'to stderr\n');
    assert.deepEqual(await workload.exit, { exitCode: 0 });
    assert.deepEqual(gaps, [5]);
  });

  it('stops reading the socket while nobody reads the output', async () => {
    const totalBytes = 30_000_000;
    const record = server.addJob({ image: 'x', command: ['flood', String(totalBytes)] });
    const workload = await client.attach(record.allocation.id);
    await workload.started;
    workload.stderr.resume();
    for (let turn = 0; turn < 2000; turn++) await nextTurn();
    assert.ok(
      workload.stdout.readableLength > 0 && workload.stdout.readableLength < 2_000_000,
      `${workload.stdout.readableLength} bytes are held`,
    );
    assert.equal(record.allocation.state, 'running');
    const hash = createHash('sha256');
    for await (const chunk of workload.stdout) hash.update(chunk);
    const expected = createHash('sha256');
    for (const chunk of floodChunks(totalBytes)) expected.update(chunk);
    assert.equal(hash.digest('hex'), expected.digest('hex'));
    assert.equal((await workload.exit).exitCode, 0);
  });

  it('shows that it is alive while it does not read', async () => {
    mock.timers.enable({ apis: ['setInterval'] });
    try {
      const record = server.addJob({ image: 'x', command: ['flood', '30000000'] });
      const workload = await client.attach(record.allocation.id);
      await workload.started;
      for (let turn = 0; turn < 2000; turn++) await nextTurn();
      assert.equal(record.allocation.state, 'running', 'it is not held up');
      const before = server.pongs;
      mock.timers.tick(10_000);
      await server.until(() => server.pongs > before);
      workload.close();
    } finally {
      mock.timers.reset();
    }
  });

  it('splits input that is longer than a message, and ends it', async () => {
    const record = server.addJob({ image: 'x', command: ['cat'], stdin: true });
    const workload = await client.attach(record.allocation.id, { stdin: true });
    await workload.started;
    const input = Buffer.concat([...floodChunks(200_001)]);
    workload.stderr.resume();
    workload.stdin.end(input);
    assert.ok(Buffer.concat(await workload.stdout.toArray()).equals(input));
    assert.equal((await workload.exit).exitCode, 0);
  });

  it('runs one more process, resizes its terminal and signals it', async () => {
    const record = server.addJob({ image: 'x' });
    const workload = await client.exec(record.allocation.id, { command: ['sleep'], tty: true });
    workload.stdout.resume();
    workload.stderr.resume();
    await workload.started;
    workload.resize(24, 80);
    workload.signal(15);
    assert.deepEqual(await workload.exit, { exitCode: 143, signal: 15 });
    assert.equal(server.resizes.at(-1), '24x80');
  });

  it('gives the reason of a process that never starts, and of a refused socket', async () => {
    const { allocations } = await client.createJob({ image: 'x', command: ['missing'] });
    const workload = await client.attach(allocations[0]!.id);
    assert.equal((await refusal(workload.started)).code, 'sandbox.command-not-found');
    assert.equal((await refusal(workload.exit)).code, 'sandbox.command-not-found');
    assert.equal((await refusal(client.attach('nothing'))).code, 'not-found');
  });
});

describe('makePath', () => {
  it('escapes what a caller gives, so that no name reaches another route', () => {
    assert.equal(makePath('stopJob', { job: '../x?y' }), '/v1/jobs/..%2Fx%3Fy/stop');
    assert.equal(
      makePath('logs', { allocation: 'a' }, { follow: true, tailLines: undefined }),
      '/v1/allocations/a/logs?follow=true',
    );
  });
});
