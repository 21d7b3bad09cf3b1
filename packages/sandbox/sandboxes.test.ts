// Sandboxes from their start to their end, in real machines.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { SandboxFixture } from './sandboxFixture.ts';
import type { MachineRecord } from './sandboxFolder.ts';

let fixture: SandboxFixture;
before(async () => {
  fixture = await SandboxFixture.open();
});
after(async () => await fixture[Symbol.asyncDispose]());

describe('a sandbox', () => {
  test('runs a command to its end, keeps its output, and leaves nothing else', async () => {
    const sandbox = fixture.shell('echo out; echo err >&2; exit 3');
    assert.equal((await fixture.output(sandbox)).toString(), 'out\n');
    assert.equal((await fixture.output(sandbox, 2)).toString(), 'err\n');
    await sandbox.ended;
    assert.deepEqual(sandbox.state, { phase: 'exited', exitCode: 3, oomKilled: false });
    assert.deepEqual(await fixture.leftOf(sandbox), []);
    const times = ['jailReadyAt', 'bootedAt', 'startedAt', 'firstOutputAt', 'endedAt'] as const;
    const stages = times.map((name) => sandbox.timeline[name] ?? 0);
    assert.deepEqual(
      stages,
      [...stages].sort((a, b) => a - b),
    );
  });

  test('reads its standard input, to its end', async () => {
    const sandbox = fixture.shell('md5sum; echo over', { stdin: true });
    await sandbox.writeStdin(Buffer.alloc(1_000_000, 'x'));
    sandbox.endStdin();
    assert.match(
      (await fixture.output(sandbox)).toString(),
      /^ec78dbd963d2fc01e51176ed4dec299e {2}-\nover\n$/,
    );
    await assert.rejects(sandbox.writeStdin(Buffer.from('late')), { code: 'state.wrong' });
  });

  test('has standard input at its end when none was asked for', async () => {
    const sandbox = fixture.shell('cat; echo over');
    await assert.rejects(sandbox.writeStdin(Buffer.from('x')), { code: 'state.wrong' });
    assert.equal((await fixture.output(sandbox)).toString(), 'over\n');
  });

  test('passes every byte value through, both ways', async () => {
    const all = Buffer.from(Array.from({ length: 70_000 }, (_, i) => (i * 7) & 0xff));
    const sandbox = fixture.create(['cat'], { stdin: true });
    await sandbox.writeStdin(all);
    sandbox.endStdin();
    assert.ok((await fixture.output(sandbox)).equals(all));
  });

  test('has a terminal of the size that it is given', async () => {
    const sandbox = fixture.shell(
      'stty -echo; trap "stty size; exit" WINCH; echo ready; while :; do sleep 0.1; done',
      {
        tty: true,
        stdin: true,
      },
    );
    await fixture.outputHas(sandbox, 'ready');
    sandbox.resize(33, 77);
    assert.match((await fixture.output(sandbox)).toString(), /33 77\r\n$/);
  });

  test('gives 100 MB to a reader that is slow, whole and in order, with bounded memory', async () => {
    const small = await SandboxFixture.open({ outputLimits: { segmentBytes: 262_144, maxSegments: 4 } });
    try {
      const sandbox = small.shell('dd if=/dev/zero bs=65536 count=1600 2>/dev/null | tr "\\0" y; sleep 1000');
      let bytes = 0;
      const before = process.memoryUsage().rss;
      let peak = before;
      for await (const record of sandbox.output.read({ follow: true, pin: true })) {
        assert.ok('bytes' in record, 'nothing is rotated away before it was read');
        assert.ok(record.bytes.every((byte) => byte === 0x79));
        bytes += record.bytes.length;
        if (bytes % (5 * 1_048_576) < record.bytes.length)
          await new Promise((resolve) => setTimeout(resolve, 20));
        peak = Math.max(peak, process.memoryUsage().rss);
        if (bytes === 1600 * 65_536) break;
      }
      assert.equal(bytes, 1600 * 65_536);
      assert.ok(peak - before < 100 * 1_048_576, `memory grew by ${(peak - before) >> 20} MiB`);
    } finally {
      await small[Symbol.asyncDispose]();
    }
  });

  test('is killed at once, with everything in it', async () => {
    const sandbox = fixture.shell('trap "" TERM INT; echo up; while :; do :; done');
    await fixture.outputHas(sandbox, 'up');
    await sandbox.kill();
    assert.deepEqual(sandbox.state, { phase: 'exited', exitCode: 137, signal: 9, oomKilled: false });
    assert.deepEqual(await fixture.leftOf(sandbox), []);
  });

  test('is stopped by its signal, and killed when it does not mind it', async () => {
    const polite = fixture.create(
      ['/bin/sh', '-c', 'trap "echo bye; exit 7" USR1; echo up; while :; do sleep 0.05; done'],
      {},
      { stopSignal: 'SIGUSR1' },
    );
    const stubborn = fixture.shell('trap "" TERM; echo up; while :; do sleep 0.05; done');
    await fixture.outputHas(polite, 'up');
    polite.stop(20_000);
    await fixture.outputHas(stubborn, 'up');
    stubborn.stop(100);
    await Promise.all([polite.ended, stubborn.ended]);
    assert.deepEqual(polite.state, { phase: 'exited', exitCode: 7, oomKilled: false });
    assert.equal((await fixture.output(polite)).toString(), 'up\nbye\n');
    assert.deepEqual(stubborn.state, { phase: 'exited', exitCode: 137, signal: 9, oomKilled: false });
  });

  test('gets the signals that it is sent', async () => {
    const sandbox = fixture.shell('trap "echo got hup" HUP; echo up; while :; do sleep 0.05; done');
    await fixture.outputHas(sandbox, 'up');
    sandbox.signal(1);
    await fixture.outputHas(sandbox, 'got hup');
    sandbox.signal(9); // pid 1 minds no other that it has no handler for
    await sandbox.ended;
    assert.deepEqual(sandbox.state, { phase: 'exited', exitCode: 137, signal: 9, oomKilled: false });
  });

  for (const afterMs of [0, 5, 15, 40, 80, 200, 1000, 1900]) {
    test(`leaves nothing when it is killed ${afterMs} ms into its start`, async () => {
      const sandbox = fixture.shell('echo never');
      await new Promise((resolve) => setTimeout(resolve, afterMs));
      await sandbox.kill();
      await sandbox.ended;
      assert.equal(sandbox.state.phase, 'exited');
      assert.deepEqual(await fixture.leftOf(sandbox), []);
    });
  }
});

describe('a command that cannot be run', () => {
  const cases = [
    { what: 'not there', command: ['/bin/nothing'], code: 'sandbox.command-not-found' },
    { what: 'not on the PATH', command: ['nothing'], code: 'sandbox.command-not-found' },
    { what: 'not executable', command: ['/etc/plain'], code: 'sandbox.command-not-executable' },
    { what: 'a folder', command: ['/etc'], code: 'sandbox.command-not-executable' },
    { what: 'nothing at all', command: [], config: { cmd: [] }, code: 'sandbox.command-not-found' },
    {
      what: 'for a user whom nobody knows',
      command: ['id'],
      spec: { user: 'nobody-here' },
      code: 'sandbox.user-not-found',
    },
  ];
  for (const { what, command, code, spec, config } of cases) {
    test(`fails when it is ${what}`, async () => {
      const sandbox = fixture.create(command, spec, config);
      await sandbox.ended;
      assert.ok(sandbox.state.phase === 'failed');
      assert.equal(sandbox.state.reason.code, code, sandbox.state.reason.message);
      assert.deepEqual(await fixture.leftOf(sandbox).catch(() => []), []);
    });
  }
});

describe('exec', () => {
  test('runs beside the workload, with streams of its own', async () => {
    const sandbox = fixture.shell('echo up; sleep 1000');
    await fixture.outputHas(sandbox, 'up');
    const run = async (command: string[], input?: Buffer, more: object = {}) => {
      const out: Buffer[] = [];
      const exec = sandbox.exec(
        {
          command,
          env: { EXTRA: 'yes' },
          tty: false,
          stdin: input !== undefined,
          rows: 0,
          columns: 0,
          ...more,
        },
        async (_fd, bytes) => void out.push(bytes),
      );
      if (input) {
        await exec.writeStdin(input);
        exec.endStdin();
      }
      return { end: await exec.ended, text: Buffer.concat(out).toString() };
    };
    const many = await Promise.all(
      Array.from({ length: 8 }, (_, i) => run(['sh', '-c', `echo $EXTRA ${i}; exit ${i}`])),
    );
    for (const [i, { end, text }] of many.entries()) {
      assert.equal(text, `yes ${i}\n`);
      assert.deepEqual(end, { kind: 'exit', exitCode: i, oomKilled: false });
    }
    const echoed = await run(['cat'], Buffer.alloc(300_000, 'z'));
    assert.equal(echoed.text.length, 300_000);
    const missing = await run(['nothing']);
    assert.ok(missing.end.kind === 'error');
    assert.equal(missing.end.reason.code, 'sandbox.command-not-found');
    assert.match((await run(['id', '-u'], undefined, { user: 'guest' })).text, /^1000\n$/);
    await sandbox.kill();
    assert.throws(
      () =>
        sandbox.exec(
          { command: ['id'], env: {}, tty: false, stdin: false, rows: 0, columns: 0 },
          async () => {},
        ),
      {
        code: 'state.wrong',
      },
    );
  });

  test('is killed when whoever started it lets go, and holds the guest back while its output is not taken', async () => {
    const sandbox = fixture.shell('echo up; sleep 1000');
    await fixture.outputHas(sandbox, 'up');
    let taken = 0;
    const { promise: gate, resolve: openGate } = Promise.withResolvers<void>();
    const exec = sandbox.exec(
      { command: ['yes'], env: {}, tty: false, stdin: false, rows: 0, columns: 0 },
      async (_fd, bytes) => {
        taken += bytes.length;
        await gate;
      },
    );
    await exec.started;
    await new Promise((resolve) => setTimeout(resolve, 300));
    assert.ok(taken <= 262_144, `${taken} bytes were handed over before the first was taken`);
    openGate();
    exec.close();
    assert.deepEqual(await exec.ended, { kind: 'exit', exitCode: 137, signal: 9, oomKilled: false });
    const left: Buffer[] = [];
    const look = sandbox.exec(
      { command: ['sh', '-c', 'sleep 0.2; ps'], env: {}, tty: false, stdin: false, rows: 0, columns: 0 },
      async (_fd, bytes) => void left.push(bytes),
    );
    await look.ended;
    assert.doesNotMatch(Buffer.concat(left).toString(), /yes/);
    await sandbox.kill();
  });
});

describe('after the agent was restarted', () => {
  test('a running sandbox goes on, and not a byte of its output is lost or doubled', async () => {
    const sandbox = fixture.shell(
      'i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 5',
    );
    await fixture.outputHas(sandbox, 'line 3\n');
    await fixture.reopen();
    const adopted = fixture.sandboxes.get(sandbox.id);
    assert.ok(adopted);
    assert.equal(adopted.state.phase, 'running');
    const lines = (await fixture.output(adopted)).toString();
    assert.equal(lines, Array.from({ length: 40 }, (_, i) => `line ${i}\n`).join(''));
    await adopted.ended;
    assert.deepEqual(adopted.state, { phase: 'exited', exitCode: 5, oomKilled: false });
    await fixture.reopen();
    const later = fixture.sandboxes.get(sandbox.id);
    assert.deepEqual(later?.state, { phase: 'exited', exitCode: 5, oomKilled: false });
    assert.equal(later && (await fixture.output(later)).toString(), lines);
  });

  test('one that was booting boots on, and runs', async () => {
    const sandbox = fixture.shell('echo once');
    const path = join(fixture.jails.folder, 'sandboxes', sandbox.id, 'machine.json');
    while (!(await readFile(path).catch(() => undefined)))
      await new Promise((resolve) => setTimeout(resolve, 5));
    await fixture.reopen();
    const adopted = fixture.sandboxes.get(sandbox.id);
    assert.ok(adopted);
    assert.equal((await fixture.output(adopted)).toString(), 'once\n');
    await adopted.ended;
    assert.deepEqual(adopted.state, { phase: 'exited', exitCode: 0, oomKilled: false });
  });

  test('one whose machine was not there yet is as if never made', async () => {
    const sandbox = fixture.shell('echo never');
    await fixture.reopen();
    assert.equal(fixture.sandboxes.get(sandbox.id), undefined);
    assert.ok(!(await readFile(join(fixture.jails.folder, 'sandboxes', sandbox.id)).catch(() => undefined)));
  });

  test('one that died meanwhile says so', async () => {
    const sandbox = fixture.shell('echo up; sleep 1000');
    await fixture.outputHas(sandbox, 'up');
    await fixture.sandboxes.close();
    const path = join(fixture.jails.folder, 'sandboxes', sandbox.id, 'machine.json');
    const machine = JSON.parse(await readFile(path, 'utf8')) as MachineRecord;
    process.kill(machine.process.pid, 'SIGKILL');
    await fixture.reopen();
    const found = fixture.sandboxes.get(sandbox.id);
    await found?.ended; // when it was seen still dying, it is taken down only now
    assert.ok(found?.state.phase === 'failed');
    assert.equal(found.state.reason.code, 'sandbox.vmm-died');
    assert.equal((await fixture.output(found)).toString(), 'up\n');
    assert.deepEqual(await fixture.leftOf(found), []);
  });
});
