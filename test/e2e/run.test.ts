// The cloister command against a real cluster: what its user types, and what comes back.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { release } from 'node:os';
import { after, before, describe, test } from 'node:test';
import { finish, untilSaid } from '@cloister/cli/testCli.ts';
import { EndToEnd } from './fixture.ts';

let e2e: EndToEnd;
before(async () => {
  e2e = await EndToEnd.start();
});
after(async () => await e2e[Symbol.asyncDispose]());

const SMALL = ['--memory', '128m', '--disk', '64m'];

describe('cloister run', () => {
  test('shows what the image writes, on the stream it writes to, and exits as it does', async () => {
    const ran = await e2e.cli([
      'run',
      ...SMALL,
      e2e.busybox,
      '--',
      'sh',
      '-c',
      'echo out; echo err >&2; exit 3',
    ]);
    assert.equal(ran.stdout.toString(), 'out\n');
    assert.match(ran.stderr, /^err$/m);
    assert.equal(ran.code, 3);
  });

  test('exits as shells do for commands that cannot be run, and as Docker does for images that cannot', async () => {
    const missing = await e2e.cli(['run', ...SMALL, e2e.busybox, '/bin/none']);
    assert.equal(missing.code, 127, missing.stderr);
    const plain = await e2e.cli(['run', ...SMALL, e2e.busybox, '/etc/passwd']);
    assert.equal(plain.code, 126, plain.stderr);
    const image = await e2e.cli(['run', ...SMALL, `${e2e.registry.host}/no-such-image`]);
    assert.equal(image.code, 125);
    assert.match(image.stderr, /no-such-image/);
  });

  test('is a machine of its own: its kernel, its first process, its network with nothing in it', async () => {
    const script =
      'uname -r; cat /proc/1/comm; ls /sys/class/net; hostname; id -u; cat /proc/self/status | grep CapEff';
    const out = await e2e.ok(
      'run',
      ...SMALL,
      '--rm',
      '--name',
      'lonely',
      e2e.busybox,
      '--',
      'sh',
      '-c',
      script,
    );
    const [kernel, first, network, host, uid, capabilities] = out.trim().split('\n');
    assert.notEqual(kernel, release());
    assert.deepEqual([first, network, host, uid], ['sh', 'lo', 'lonely', '0']);
    assert.equal(capabilities, 'CapEff:\t000001ffffffffff');
  });

  test('gives what was asked for: variables, user, folder, entrypoint, memory, disk', async () => {
    const script = 'echo $A-$B; id -u; pwd; grep MemTotal /proc/meminfo; df -m / | tail -1';
    const args = ['-e', 'A=one', '-e', 'B', '--user', '65534', '--workdir', '/tmp', '--entrypoint', 'sh'];
    const ran = await e2e.cli(
      [
        'run',
        '--rm',
        '--memory',
        '200m',
        '--disk',
        '96m',
        '--cpu',
        '0.5',
        ...args,
        e2e.busybox,
        '--',
        '-c',
        script,
      ],
      {
        env: { B: 'two' },
      },
    );
    const [variables, uid, folder, memory = '', disk = ''] = ran.stdout.toString().trim().split('\n');
    assert.deepEqual([variables, uid, folder], ['one-two', '65534', '/tmp']);
    const memoryMiB = Number(/(\d+) kB/.exec(memory)?.[1]) / 1024;
    assert.ok(memoryMiB > 130 && memoryMiB <= 200, memory);
    const diskMiB = Number(disk.split(/\s+/)[1]);
    assert.ok(diskMiB > 70 && diskMiB <= 96, disk);
  });

  test('carries every byte of a pipe through the machine and back', async () => {
    const bytes = randomBytes(3_000_000);
    const ran = await e2e.cli(['run', '--rm', '-i', ...SMALL, e2e.busybox, 'cat'], { input: bytes });
    assert.equal(ran.code, 0, ran.stderr);
    const sum = (of: Buffer): string => createHash('sha256').update(of).digest('hex');
    assert.equal(sum(ran.stdout), sum(bytes));
  });

  test('has a terminal when it is asked for one', async () => {
    const cli = e2e.spawn(['run', '--rm', '-it', ...SMALL, e2e.busybox, 'sh'], { terminal: true });
    await untilSaid(cli.stdout, '# ');
    const answer = untilSaid(cli.stdout, '30 100');
    cli.stdin.write('stty size\n');
    await answer;
    const ended = finish(cli);
    cli.stdin.write('exit 9\n');
    assert.equal((await ended).code, 9);
  });

  test('passes an interrupt on to the workload', async () => {
    const script = 'trap "echo caught; exit 42" INT; echo up; while :; do sleep 0.1; done';
    const cli = e2e.spawn(['run', '--rm', ...SMALL, e2e.busybox, '--', 'sh', '-c', script]);
    await untilSaid(cli.stdout, 'up');
    const ended = finish(cli);
    cli.kill('SIGINT');
    const { code, stdout } = await ended;
    assert.deepEqual([code, stdout.toString()], [42, 'caught\n']);
  });

  test('holds 100 MB back while nobody reads, in bounded memory everywhere', async () => {
    const cli = e2e.spawn([
      'run',
      '--rm',
      ...SMALL,
      e2e.busybox,
      '--',
      'dd',
      'if=/dev/zero',
      'bs=1M',
      'count=100',
    ]);
    const { agentPid, serverPid } = e2e.cluster;
    const before = await Promise.all([rssMiB(agentPid), rssMiB(serverPid)]);
    let peak = before;
    let bytes = 0;
    cli.stderr.resume();
    for await (const chunk of cli.stdout) {
      if (bytes === 0) await new Promise((resolve) => setTimeout(resolve, 3_000)); // a reader that is away at first
      bytes += (chunk as Buffer).length;
      if (bytes % (10 * 1_048_576) < (chunk as Buffer).length) {
        const now = await Promise.all([rssMiB(agentPid), rssMiB(serverPid)]);
        peak = peak.map((mib, i) => Math.max(mib, now[i] ?? 0)) as typeof peak;
      }
    }
    assert.equal(bytes, 100 * 1_048_576);
    const grown = peak.map((mib, i) => mib - (before[i] ?? 0));
    assert.ok(
      grown.every((mib) => mib < 100),
      `agent and server grew by ${grown} MiB`,
    );
  });
});

async function rssMiB(pid: number): Promise<number> {
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
}

test('a job is run, watched, entered, stopped and removed by name', async () => {
  const script =
    'trap "echo stopping; exit 5" TERM; i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.2; done';
  await e2e.ok('run', '-d', '--name', 'clock', ...SMALL, e2e.busybox, '--', 'sh', '-c', script);
  const follower = e2e.spawn(['logs', '-f', 'clock']);
  await untilSaid(follower.stdout, 'tick 3');
  assert.match(await e2e.ok('ps'), /clock/);
  assert.match(JSON.stringify(JSON.parse(await e2e.ok('ps', '--json'))), /"name":"clock"/);
  assert.equal(
    await e2e.ok('exec', 'clock', '--', 'sh', '-c', 'echo inside; cat /proc/1/comm'),
    'inside\nsh\n',
  );
  assert.equal((await e2e.cli(['exec', 'clock', '--', 'sh', '-c', 'exit 6'])).code, 6);
  assert.equal(
    (await e2e.cli(['exec', '-i', 'clock', 'cat'], { input: 'through' })).stdout.toString(),
    'through',
  );
  const shell = e2e.spawn(['exec', '-it', 'clock', 'sh'], { terminal: true });
  await untilSaid(shell.stdout, '# ');
  const ended = finish(shell);
  shell.stdin.write('tty; exit 3\n');
  const ran = await ended;
  assert.match(ran.stdout.toString(), /\/dev\/pts\/\d/);
  assert.equal(ran.code, 3);
  const followed = finish(follower);
  await e2e.ok('stop', 'clock');
  assert.match((await followed).stdout.toString(), /stopping\n$/);
  assert.match(await e2e.ok('logs', 'clock'), /^tick 0\n(.*\n)*stopping\n$/);
  assert.match(await e2e.ok('inspect', 'clock'), /exitCode.*5/);
  assert.match(await e2e.ok('events'), /clock/);
  await e2e.ok('rm', 'clock');
  assert.notEqual((await e2e.cli(['inspect', 'clock'])).code, 0);
});

test('one that would run for ever is killed', async () => {
  await e2e.ok(
    'run',
    '-d',
    '--name',
    'forever',
    ...SMALL,
    e2e.busybox,
    '--',
    'sh',
    '-c',
    'trap "" TERM INT; while :; do :; done',
  );
  assert.equal(await e2e.ok('exec', 'forever', 'echo', 'waited'), 'waited\n', 'exec waits for the start');
  await e2e.ok('kill', 'forever');
  assert.match(await e2e.ok('inspect', 'forever', '--json'), /137/);
  await e2e.ok('rm', 'forever');
});

test('images and nodes are listed, and images pulled before they are needed', async () => {
  const image = await e2e.push('ahead', { files: [{ path: 'etc/ahead', content: 'x' }] });
  const pulled = await e2e.cli(['pull', image]);
  assert.equal(pulled.code, 0, pulled.stderr);
  assert.match(await e2e.ok('images'), /ahead/);
  const { nodes } = JSON.parse(await e2e.ok('nodes', '--json')) as {
    nodes: { health: string; facts: { vmm: string } }[];
  };
  const [node] = nodes;
  assert.equal(node?.health, 'ready');
  assert.match(node?.facts.vmm ?? '', /qemu/);
  const failed = await e2e.cli(['pull', `${e2e.registry.host}/nothing`]);
  assert.notEqual(failed.code, 0);
});
