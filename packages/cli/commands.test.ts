// The other commands as real processes: what they print, for people and as JSON, and how they fail.
import assert from 'node:assert/strict';
import { chmod, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { TestCli } from './testCli.ts';

describe('cloister', { timeout: 120_000 }, () => {
  let cli: TestCli;
  before(async () => {
    cli = await TestCli.start();
  });
  after(() => cli.close());
  beforeEach(() => {
    cli.server.jobs.length = 0;
  });
  const out = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await cli.run(args);
    assert.equal(code, 0, stderr);
    return stdout.toString();
  };

  it('lists running jobs as a table, and those that ended with -a', async () => {
    cli.server.addJob({ image: 'busybox', name: 'old', command: ['sh', '-c', 'exit 3'] }, 'exited', {
      exitCode: 3,
    });
    cli.server.update(cli.server.jobs[0]!, {});
    const { job } = cli.server.addJob({ image: 'nginx\u001b[31m', name: 'web' });
    const lines = (await out('ps')).split('\n');
    assert.match(lines[0]!, /^NAME +ID +IMAGE +COMMAND +STATE +CREATED$/);
    assert.equal(lines[1], `web   ${job.id.slice(0, 12)}  nginx?[31m  -        running  2m ago`);
    assert.equal(lines.length, 3);
    assert.match(await out('ps', '-a'), /old .* sh -c 'exit 3' .*exited \(3\)/);
    assert.equal(await out('ps', '-q'), `${job.id}\n`);
  });

  it('prints one JSON document, or lines of JSON for what streams', async () => {
    const { job } = cli.server.addJob({ image: 'x', name: 'web' });
    cli.server.events = [{ revision: 1, at: 5, type: 'job.created', subject: job.id, name: 'web' }];
    const keys = async (...args: string[]) => Object.keys(JSON.parse(await out(...args, '--json')));
    assert.deepEqual(await keys('ps'), ['jobs']);
    assert.deepEqual(await keys('images'), ['images']);
    assert.deepEqual(await keys('nodes'), ['nodes']);
    assert.deepEqual(await keys('tenants'), ['tenants']);
    assert.deepEqual(await keys('tokens', 'ls', 'test'), ['tokens']);
    assert.deepEqual(await keys('token', 'create', 'test'), ['token', 'secret']);
    assert.deepEqual(await keys('node', 'token'), ['secret', 'role', 'expiresAt']);
    assert.deepEqual(await keys('whoami'), ['tenant', 'scope']);
    assert.deepEqual(await keys('version', '--server'), ['client', 'server']);
    assert.deepEqual(await keys('inspect', 'web'), ['job', 'allocations']);
    assert.deepEqual(JSON.parse(await out('kill', '-s', 'HUP', 'web', '--json')), [
      { id: job.id, name: 'web', signal: 1 },
    ]);
    assert.deepEqual(cli.server.signals, [1]);
    assert.equal(JSON.parse((await out('events', '--json')).trim()).revision, 1);
    const lines = (await out('logs', 'web', '--json'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    assert.deepEqual(
      lines.map(({ stream }) => stream),
      ['stdout', 'stderr', 'stdout'],
    );
    const refused = await cli.run(['inspect', 'nothing', '--json']);
    assert.equal(JSON.parse(refused.stderr).error.code, 'not-found');
  });

  it('prints logs as they were written, or with the time before each line', async () => {
    cli.server.addJob({ image: 'x', name: 'web' });
    const plain = await cli.run(['logs', 'web']);
    assert.equal(plain.stdout.toString(), 'first line\nsecond\n');
    assert.equal(plain.stderr, 'oops\n');
    assert.equal(
      await out('logs', '--timestamps', 'web'),
      '2023-11-14T22:13:20.000Z first line\n2023-11-14T22:13:20.000Z second\n',
    );
  });

  it('finds a job by its name, its id, the beginning of its id or its allocation, and says when several fit', async () => {
    const { job, allocation } = cli.server.addJob({ image: 'x', name: 'web' });
    cli.server.addJob({ image: 'x', name: 'other' });
    for (const key of ['web', job.id, job.id.slice(0, 14), job.id.slice(4, 14)]) {
      assert.equal(JSON.parse(await out('inspect', key)).job.id, job.id, key);
    }
    assert.equal(JSON.parse(await out('inspect', allocation.id.slice(0, 14))).id, allocation.id);
    assert.match((await cli.run(['inspect', 'job-'])).stderr, /"job-" is the beginning of 2 ids/);
    assert.equal(JSON.parse(await out('inspect', 'worker-1')).role, 'worker');
  });

  it('ends and removes jobs, each of those named, and says which it could not', async () => {
    cli.server.addJob({ image: 'x', name: 'a' });
    cli.server.addJob({ image: 'x', name: 'b' });
    const early = await cli.run(['rm', 'a', 'nothing']);
    assert.equal(early.code, 1);
    assert.match(
      early.stderr,
      /could not remove a\n {2}Job a is not over\.\n {2}hint: .*\ncloister: could not remove nothing\n/,
    );
    assert.equal(await out('stop', '--grace', '1s', 'a'), 'a\n');
    assert.equal(await out('kill', 'b'), 'b\n');
    assert.equal(await out('rm', 'a', 'b'), 'a\nb\n');
    assert.equal(await out('ps', '-aq'), '');
  });

  it('pulls, and fails when a node could not', async () => {
    assert.match(await out('pull', 'busybox'), /nod-\w+ {2}aaaaaaaaaaaa {2}busybox/);
    const failed = await cli.run(['pull', 'nothere']);
    assert.equal(failed.code, 1);
    assert.match(failed.stderr, /could not pull nothere to nod-.*\n {2}There is no image nothere/);
  });

  it('exits with 2 and a hint for a wrong command line', async () => {
    const cases: readonly [string[], RegExp][] = [
      [['rn'], /no command "rn"\. Did you mean "run"\?\n {2}hint: cloister help/],
      [['constructor'], /There is no command "constructor"/],
      [['run', '--rn', 'x'], /no option --rn\. Did you mean --rm\?\n {2}hint: cloister run --help/],
      [['run'], /Something is missing; write: cloister run/],
      [['run', '--memory'], /--memory.*argument missing/],
      [['run', '--memory', 'lots', 'x'], /--memory: "lots" is not a size/],
      [['run', '--cpu', 'two', 'x'], /--cpu: "two" is not a number of CPUs/],
      [['run', '--count', '2', 'x'], /needs --detach/],
      [['kill', '-s', 'NOPE', 'x'], /--signal: "NOPE" is not a signal/],
      [['stop', '--grace', 'soon', 'x'], /--grace: "soon" is not a time/],
      [['ps', 'x'], /one word too many/],
      [['nodes', 'paint'], /nothing to do with nodes/],
    ];
    await Promise.all(
      cases.map(async ([args, expected]) => {
        const { code, stderr, stdout } = await cli.run(args);
        assert.match(stderr, expected);
        assert.equal(code, 2, args.join(' '));
        assert.equal(stdout.length, 0);
      }),
    );
  });

  it('lists the fields that the API refused', async () => {
    const { code, stderr } = await cli.run(['run', '--name', 'Bad Name', 'img']);
    assert.equal(code, 125);
    assert.match(
      stderr,
      /could not run img\n {2}The request is invalid\.\n {2}\/name: .*\n {2}hint: Correct the fields/,
    );
  });

  it('needs no cluster for its help', async () => {
    const { code, stdout } = await cli.run(['exec', '--help'], { env: { CLOISTER_CONFIG: '/nonexistent' } });
    assert.equal(code, 0);
    assert.match(stdout.toString(), /^Usage: cloister exec .*Example:\n {2}cloister exec web/s);
    assert.match(await out('help'), /\n {2}run +Run an image/);
  });

  it('points to "make up" when there is no configuration', async () => {
    const { code, stderr } = await cli.run(['ps'], { env: { CLOISTER_CONFIG: '/nonexistent' } });
    assert.equal(code, 1);
    assert.match(
      stderr,
      /could not find out how to reach a cluster\n {2}There is no \/nonexistent\.\n {2}hint: .*make up/,
    );
  });

  it('refuses a credential that others may read, and never prints one', async () => {
    const path = join(cli.folder, 'open.json');
    const config = { url: cli.server.url, caFile: 'ca.pem', token: 'a-very-secret-token' };
    await writeFile(path, JSON.stringify(config));
    await chmod(path, 0o644);
    const outputs: string[] = [];
    const ask = async () => {
      const { stderr, stdout } = await cli.run(['ps'], { env: { CLOISTER_CONFIG: path } });
      outputs.push(stderr, stdout.toString());
      return stderr;
    };
    assert.match(await ask(), /others may use it \(its mode is 0644\)\.\n {2}hint: chmod 600/);
    await chmod(path, 0o600);
    assert.match(await ask(), /The token is not valid/);
    await writeFile(path, `${JSON.stringify(config)}}`);
    assert.match(await ask(), /is not JSON/);
    await writeFile(path, JSON.stringify({ ...config, token: 'a-very-secret-token\n' }));
    await ask();
    await writeFile(path, JSON.stringify({ ...config, url: 'https://x:a-very-secret-token@127.0.0.1' }));
    await ask();
    await writeFile(path, JSON.stringify({ ...config, token: undefined, tokenFile: 'token' }));
    await writeFile(join(cli.folder, 'token'), 'a-very-secret-token', { mode: 0o640 });
    assert.match(await ask(), /its mode is 0640/);
    assert.doesNotMatch(outputs.join(''), /very-secret/);
  });
});
