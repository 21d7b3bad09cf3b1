// cloister run and exec as real processes, with pipes and with a terminal.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { after, before, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { floodChunks } from '@cloister/client/testWorkloads.ts';
import { finish, TestCli, untilSaid } from './testCli.ts';

describe('cloister run', { timeout: 120_000 }, () => {
  let cli: TestCli;
  before(async () => {
    cli = await TestCli.start();
  });
  after(() => cli.close());
  beforeEach(() => {
    cli.server.jobs.length = 0;
    cli.server.signals.length = 0;
    cli.server.resizes.length = 0;
    cli.server.requests.length = 0;
    cli.server.sentBytes = 0;
  });

  it('writes stdout and stderr byte for byte, and exits with the code of the workload', async () => {
    const { code, stdout, stderr } = await cli.run(['run', '--rm', 'img', 'both']);
    assert.deepEqual(stdout, Buffer.from([0, 255, 10, 128]));
    assert.match(stderr, /to stderr\n/);
    assert.match(stderr, /5 bytes of output were lost/);
    assert.equal(code, 0);
    assert.equal((await cli.run(['run', 'img', '--', 'exit', '42'])).code, 42);
    assert.equal(cli.server.jobs[1]?.job.spec.removeWhenDone, true);
  });

  it('exits with 127, 126 or 125 when the workload never ran, and says why', async () => {
    const missing = await cli.run(['run', 'img', 'missing']);
    assert.equal(missing.code, 127);
    assert.match(
      missing.stderr,
      /^cloister: could not run img\n {2}"missing" cannot be run\.\n {2}hint: Check the command/,
    );
    assert.equal((await cli.run(['run', 'img', 'directory'])).code, 126);
    cli.server.addJob({ image: 'x', name: 'web' });
    const taken = await cli.run(['run', '--name', 'web', 'img']);
    assert.equal(taken.code, 125);
    assert.match(taken.stderr, /There is a job "web" already/);
    assert.equal(
      (await cli.run(['run', 'img', 'echo'], { env: { CLOISTER_URL: 'https://127.0.0.1:1' } })).code,
      125,
    );
  });

  it('sends its input, and the end of it', async () => {
    const input = Buffer.concat([...floodChunks(300_000)]);
    const { code, stdout } = await cli.run(['run', '-i', 'img', 'cat'], { input });
    assert.ok(stdout.equals(input));
    assert.equal(code, 0);
  });

  it('sends input to a workload that has said nothing yet', async () => {
    assert.equal((await cli.run(['run', '-i', 'img', 'silent'], { input: 'x' })).code, 5);
    cli.server.addJob({ image: 'x', name: 'web' });
    assert.equal((await cli.run(['exec', '-i', 'web', 'silent'], { input: 'x' })).code, 5);
  });

  it('passes 20 MB to a slow reader exactly, holding back the sender meanwhile', async () => {
    const totalBytes = 20_000_000;
    const child = cli.spawn(['run', 'img', 'flood', String(totalBytes)]);
    let seen = -1;
    while (seen !== cli.server.sentBytes || seen === 0) {
      seen = cli.server.sentBytes;
      await delay(250); // nothing tells that nothing happens any more
    }
    assert.ok(seen > 0 && seen < totalBytes * 0.7, `${seen} bytes went out to a reader that read none`);
    const hash = createHash('sha256');
    let bytes = 0;
    for await (const chunk of child.stdout) {
      hash.update(chunk);
      bytes += chunk.length;
      if (bytes === totalBytes) break;
      if (bytes > totalBytes / 2 && bytes < totalBytes / 2 + 65_537) {
        const peakKiB = Number(
          /VmHWM:\s+(\d+)/.exec(await readFile(`/proc/${child.pid}/status`, 'utf8'))?.[1],
        );
        assert.ok(peakKiB < 140 * 1024, `it held ${peakKiB} KiB`);
      }
    }
    const expected = createHash('sha256');
    for (const chunk of floodChunks(totalBytes)) expected.update(chunk);
    assert.equal(hash.digest('hex'), expected.digest('hex'));
  });

  it('passes an interrupt to the workload and exits as that does', async () => {
    for (const [name, number] of [
      ['SIGINT', 2],
      ['SIGTERM', 15],
    ] as const) {
      const child = cli.spawn(['run', 'img', 'sleep']);
      const finished = finish(child);
      await untilSaid(child.stdout, 'ready');
      child.kill(name);
      assert.equal((await finished).code, 128 + number);
      assert.equal(cli.server.signals.at(-1), number);
    }
  });

  it('kills a workload that ignores interrupts, at the third', async () => {
    const child = cli.spawn(['run', 'img', 'stubborn']);
    const finished = finish(child);
    await untilSaid(child.stdout, 'ready');
    for (const count of [1, 2, 3]) {
      child.kill('SIGINT');
      if (count < 3) await cli.server.until(() => cli.server.signals.length === count);
    }
    assert.equal((await finished).code, 137);
    assert.ok(cli.server.requests.some((request) => request.endsWith('/kill')));
  });

  it('gives up a job that was not placed yet when interrupted', async () => {
    const child = cli.spawn(['run', 'unplaceable']);
    const finished = finish(child);
    await cli.server.until(() => cli.server.jobs.length === 1);
    child.kill('SIGINT');
    const { code, stderr } = await finished;
    assert.equal(code, 130);
    assert.equal(stderr, '', 'a status line was drawn into a pipe');
    assert.equal(cli.server.jobs[0]?.allocation.desired, 'kill');
  });

  it('ends quietly, and the workload too, when its reader goes away', async () => {
    const child = cli.spawn(['run', 'img', 'flood', '50000000']);
    child.stderr.resume();
    let stderr = '';
    child.stderr.on('data', (chunk) => (stderr += chunk));
    await new Promise((resolve) => child.stdout.once('data', resolve));
    child.stdout.destroy();
    const code = await new Promise((resolve) => child.once('close', resolve));
    assert.equal(code, 141);
    assert.equal(stderr, '');
    assert.equal(cli.server.jobs[0]?.allocation.desired, 'kill');
  });

  it('prints lines of JSON with --json, and one document with -d --json', async () => {
    const { stdout } = await cli.run(['run', '--json', 'img', 'echo', 'hi']);
    const lines = stdout
      .toString()
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    assert.deepEqual(
      lines.map(({ type }) => type),
      ['created', 'output', 'exit'],
    );
    assert.equal(Buffer.from(lines[1].data, 'base64').toString(), 'hi\n');
    assert.deepEqual(lines[2], { type: 'exit', exitCode: 0 });
    const detached = JSON.parse((await cli.run(['run', '-d', '--json', 'img'])).stdout.toString());
    assert.deepEqual(Object.keys(detached), ['job', 'allocations']);
    assert.equal(cli.server.jobs[1]?.job.spec.stdin, false);
  });

  it('keeps the input of a detached workload open with -d -i', async () => {
    assert.equal((await cli.run(['run', '-d', '-i', 'img', 'cat'])).code, 0);
    assert.equal(cli.server.jobs[0]?.job.spec.stdin, true);
  });

  it('sends the options as the API wants them', async () => {
    const args = [
      'run',
      '-d',
      '-e',
      'A=b=c',
      '-eFOO',
      '-e',
      'ABSENT',
      '--cpu',
      '500m',
      '-m',
      '1.5g',
      '--disk=2g',
      '--name',
      'web',
      '--entrypoint',
      'sh',
      '-u',
      '7',
      '-w',
      '/x',
      '--count',
      '3',
      '--stop-grace',
      '1m',
      'img',
      '-c',
      '--rm',
      '-d',
    ];
    const { code, stderr } = await cli.run(args, { env: { FOO: 'bar' } });
    assert.equal(code, 0, stderr);
    const spec = cli.server.jobs[0]?.job.spec;
    assert.deepEqual(spec, {
      kind: 'batch',
      image: 'img',
      env: { A: 'b=c', FOO: 'bar' },
      resources: { cpuMilli: 500, memoryMiB: 1536, diskMiB: 2048 },
      name: 'web',
      entrypoint: ['sh'],
      command: ['-c', '--rm', '-d'],
      user: '7',
      workingDir: '/x',
      count: 3,
      stopGraceMs: 60_000,
      tty: false,
      stdin: false,
      removeWhenDone: false,
      labels: {},
      nodeLabels: {},
    });
  });

  it('is raw on a terminal, tells its size, and leaves it as it was', async () => {
    const child = cli.spawn(['run', '-it', 'img', 'hex'], { terminal: true });
    const finished = finish(child);
    await untilSaid(child.stdout, 'ready');
    child.stdin.write('\x03\x1a');
    await untilSaid(child.stdout, '<031a>');
    child.stdin.write('q');
    const { code, stdout } = await finished;
    assert.equal(code, 9);
    assert.deepEqual(cli.server.resizes, ['30x100']);
    assert.match(stdout.toString(), / icanon /);
    assert.match(stdout.toString(), / echo /);
    assert.deepEqual(cli.server.signals, []);
  });

  it('leaves the terminal as it was when the connection breaks', async () => {
    const child = cli.spawn(['run', '-it', 'img', 'hex'], { terminal: true });
    const finished = finish(child);
    await untilSaid(child.stdout, 'ready');
    cli.server.dropSockets();
    const { code, stdout } = await finished;
    assert.equal(code, 125);
    assert.match(stdout.toString(), /could not run img/);
    assert.match(stdout.toString(), / icanon .* echo /s);
  });

  it('says on a terminal what it waits for', async () => {
    const child = cli.spawn(['run', 'unplaceable'], { terminal: true });
    const finished = finish(child);
    await untilSaid(child.stdout, 'placing: No node fits: 3 of 3 are full.');
    child.stdin.write('\x03');
    assert.equal((await finished).code, 130);
  });

  it('runs one more process in a running job, and refuses in one that is not', async () => {
    cli.server.addJob({ image: 'x', name: 'web' });
    const echo = await cli.run(['exec', 'web', '--', 'echo', '-n', 'hi']);
    assert.equal(echo.stdout.toString(), '-n hi\n');
    assert.equal((await cli.run(['exec', '-i', 'web', 'cat'], { input: 'abc' })).stdout.toString(), 'abc');
    assert.equal((await cli.run(['exec', 'web', 'exit', '3'])).code, 3);
    cli.server.addJob({ image: 'x', name: 'old' }, 'exited', { exitCode: 0 });
    const refused = await cli.run(['exec', 'old', 'echo']);
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /could not run echo in old\n {2}old is not running: it is exited/);
  });
});
