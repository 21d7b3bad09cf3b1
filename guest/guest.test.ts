// The guest by itself: init's pure parts under sanitizers, and whole boots of what `make guest` built, driven over the
// channel as the host would.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import {
  encodeFrame,
  encodeRequest,
  HEADER_BYTES,
  HOST_FRAME,
  MAX_PAYLOAD,
} from '../packages/sandbox/frames.ts';
import { makeImage } from './test/image.ts';
import { Machine } from './test/machine.ts';
import { type Command, processObject, request } from './test/request.ts';

const here = import.meta.dirname;
const shell = (script: string, more: Partial<Command> = {}): Command => ({
  args: ['sh', '-c', script],
  ...more,
});

test('frames, requests, rings, JSON, users and paths hold under sanitizers, and against random bytes', () => {
  const folder = mkdtempSync(join(tmpdir(), 'guest-unit-'));
  try {
    const sources = ['ring', 'frame', 'request', 'json', 'inroot', 'user', 'command'].map((name) =>
      join(here, 'init', `${name}.c`),
    );
    const flags = [
      '-g',
      '-O1',
      '-std=gnu11',
      '-Wall',
      '-Wextra',
      '-Werror',
      '-fsanitize=address,undefined',
      '-fno-sanitize-recover=all',
    ];
    execFileSync('gcc', [...flags, '-o', join(folder, 'unit'), join(here, 'test/unit.c'), ...sources]);
    mkdirSync(join(folder, 'root'));
    const result = spawnSync(join(folder, 'unit'), [join(folder, 'root'), '3'], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    assert.equal(result.status, 0, result.stderr);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

const FILES = {
  'etc/passwd': { text: 'root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n' },
  'etc/group': { text: 'root:x:0:\nalice:x:1000:\nwheel:x:10:alice\n' },
  'bin/plain': { text: 'not a program' },
  'bin/orphan': { text: '#!/no/such/interpreter\n', mode: 0o755 },
  'bin/nonsense': { text: '\u007fELF nonsense', mode: 0o755 },
};

/** The bytes that `yes` prints, to compare a stream of them with. */
function yesDigest(bytes: number): string {
  return createHash('sha256').update(Buffer.alloc(bytes, 'y\n')).digest('hex');
}

describe('a booted guest', { concurrency: 1 }, () => {
  let folder = '';
  let images: Record<'erofs' | 'squashfs', string>;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'guest-test-'));
    images = { erofs: join(folder, 'erofs'), squashfs: join(folder, 'squashfs') };
    makeImage(images.erofs, 'erofs', FILES);
    makeImage(images.squashfs, 'squashfs', FILES);
  });
  after(() => rmSync(folder, { recursive: true }));

  async function boot(options: { type?: 'erofs' | 'squashfs'; memoryMiB?: number } = {}): Promise<Machine> {
    const machine = new Machine(images[options.type ?? 'erofs'], options);
    try {
      await machine.connect();
    } catch (error) {
      await machine[Symbol.asyncDispose]();
      throw error;
    }
    return machine;
  }

  test('runs a command, returns its output and its exit code, and powers off when told', async () => {
    await using machine = await boot({ type: 'squashfs' });
    const workload = machine.start(
      shell('echo out; echo err >&2; pwd; ls -d /data/x; id -u; echo $HOME; exit 42', {
        workingDir: '/made/here',
        volumes: ['/data/x'],
      }),
    );
    await machine.ended();
    assert.equal(workload.started, true);
    assert.equal(workload.text(1), 'out\n/made/here\n/data/x\n0\n/root\n');
    assert.equal(workload.text(2), 'err\n');
    assert.deepEqual(
      [workload.exit?.exitCode, workload.exit?.signal, workload.exit?.oomKilled],
      [42, undefined, false],
    );
    assert.deepEqual(workload.ends, [workload.offsets[0], 4]);
    machine.send(HOST_FRAME.shutdown, 0, Buffer.alloc(0));
    await assert.rejects(
      machine.until(() => false, 'the end', 5_000),
      /the machine ended/,
    );
  });

  test('a running workload takes execs, signals, input, resizing and questions', async (t) => {
    await using machine = await boot();
    const workload = machine.start(
      shell('trap "echo got it; exit 7" TERM; echo ready; while :; do sleep 0.05; done'),
    );
    await machine.until(() => workload.text() === 'ready\n', 'ready');
    let next = 0;
    const finish = async (command: Command, during?: (id: number) => void | Promise<void>) => {
      const id = ++next;
      machine.exec(id, command);
      if (during) {
        await machine.until(() => machine.of(id).started, 'start of an exec');
        await during(id);
      }
      const known = await machine.ended(id);
      machine.send(HOST_FRAME.forget, id, Buffer.alloc(0));
      return known;
    };

    await t.test('exec runs in the same container, with its own exit code', async () => {
      const known = await finish(shell('ps | grep -c "[t]rap"; hostname; exit 3'));
      assert.equal(known.text(), '1\nbox\n');
      assert.equal(known.exit?.exitCode, 3);
    });
    await t.test('users are looked up in the image', async () => {
      assert.equal(
        (await finish(shell('id; echo $HOME', { user: 'alice' }))).text(),
        'uid=1000 gid=1000 groups=10,1000\n/home/alice\n',
      );
      assert.equal((await finish(shell('id -u; id -g', { user: '77:wheel' }))).text(), '77\n10\n');
      const failed = (await finish(shell('id', { user: 'nobody-here' }))).failed;
      assert.equal(failed?.code, 124);
      assert.match(failed?.text ?? '', /unable to find user nobody-here/);
    });
    await t.test('a command that cannot be executed says why, with the code of its kind', async () => {
      const missing = (await finish({ args: ['foo'] })).failed;
      assert.deepEqual(
        [missing?.code, missing?.text],
        [127, 'exec: "foo": executable file not found in $PATH'],
      );
      assert.equal((await finish({ args: ['/bin/plain'] })).failed?.code, 126);
      assert.equal((await finish({ args: ['/bin'] })).failed?.code, 126);
      const orphan = (await finish({ args: ['orphan'] })).failed;
      assert.equal(orphan?.code, 127);
      assert.match(orphan?.text ?? '', /\/no\/such\/interpreter/);
      const nonsense = (await finish({ args: ['nonsense'] })).failed;
      assert.deepEqual(nonsense?.code, 126, nonsense?.text ?? '');
    });
    await t.test('standard input arrives in order, however much, and ends', async () => {
      const known = await finish(shell('sha256sum', { stdin: true }), async (id) => {
        const bytes = Buffer.alloc(300_000, 'abcdefg');
        for (let at = 0; at < bytes.length; at += 16_384) {
          const part = bytes.subarray(at, at + 16_384);
          await machine.until(
            () => machine.of(id).inputSent + part.length <= machine.of(id).inputLimit,
            'room for input',
          );
          machine.input(id, part);
        }
        machine.endInput(id);
      });
      assert.equal(
        known.text().slice(0, 64),
        createHash('sha256').update(Buffer.alloc(300_000, 'abcdefg')).digest('hex'),
      );
    });
    await t.test('a terminal has a size, echoes, is resized, and ends its input', async () => {
      const known = await finish(
        shell('tty; stty size; read line; echo "[$line]"; stty size; cat; exit 5', {
          tty: true,
          stdin: true,
          rows: 30,
          columns: 90,
        }),
        async (id) => {
          await machine.until(() => machine.of(id).text().includes('30 90'), 'the size');
          const size = Buffer.alloc(4);
          size.writeUInt16LE(40, 0);
          size.writeUInt16LE(100, 2);
          machine.send(HOST_FRAME.resize, id, size);
          machine.input(id, 'hello\npart');
          machine.endInput(id);
        },
      );
      // What the terminal echoes comes between the lines of the program wherever it likes.
      const text = known.text();
      assert.match(text, /^\/dev\/(pts\/0|console)\r\n30 90\r\n/);
      for (const part of ['hello\r\n', '[hello]\r\n', '40 100\r\n', 'part'])
        assert.ok(text.includes(part), text);
      assert.equal(known.exit?.exitCode, 5);
      assert.equal(known.offsets[1], 0);
    });
    await t.test('a signal ends an exec, and the end names it', async () => {
      const known = await finish(shell('exec sleep 1000'), (id) => machine.signal(id, 9));
      assert.deepEqual([known.exit?.exitCode, known.exit?.signal, known.exit?.oomKilled], [137, 9, false]);
    });
    await t.test('what an exec leaves behind does not hold its end', async () => {
      const known = await finish(shell('sleep 1000 & echo done'));
      assert.equal(known.text(), 'done\n');
      assert.equal(known.exit?.exitCode, 0);
    });
    await t.test('there are 64 execs at most, and a forgotten one makes room', async () => {
      const ids = Array.from({ length: 64 }, () => ++next);
      for (const id of ids) machine.exec(id, { args: ['/none'] });
      for (const id of ids) assert.equal((await machine.ended(id)).failed?.code, 127);
      machine.exec(++next, { args: ['/none'] });
      assert.match((await machine.ended(next)).failed?.text ?? '', /too many/);
      for (const id of ids) machine.send(HOST_FRAME.forget, id, Buffer.alloc(0));
      assert.equal((await finish(shell('echo again'))).text(), 'again\n');
    });
    await t.test('statistics come when asked for', async () => {
      machine.send(HOST_FRAME.stats, 0, Buffer.alloc(0));
      await machine.until(() => machine.stats !== undefined, 'statistics');
      assert.ok(
        machine.stats!.memoryBytes > 100_000 && machine.stats!.memoryPeakBytes >= machine.stats!.memoryBytes,
      );
      assert.ok(machine.stats!.cpuMicros > 0 && machine.stats!.processes >= 1);
      assert.equal(machine.stats!.oomKills, 0);
    });
    await t.test('nonsense on the channel does no harm: the next connection is understood', async () => {
      machine.raw(Buffer.from('no frame at all'.repeat(3000)));
      machine.raw(encodeFrame(HOST_FRAME.exec, 9, 0, Buffer.from('{"process":"{","user":5')).subarray(0, 20));
      await machine.connect();
      assert.equal((await finish(shell('echo still'))).text(), 'still\n');
    });
    await t.test('a request of hundreds of KiB arrives whole: arguments, environment and all', async () => {
      const argument = 'argument '.repeat(12_000).slice(0, 100_000);
      const env = Array.from({ length: 200 }, (_, i) => `LONG_${i}=${'e"\n'.repeat(333)}`);
      const known = await finish({
        args: [
          'sh',
          '-c',
          'echo -n "$1" | sha256sum; env | grep -c ^LONG_; echo -n "$LONG_7" | wc -c',
          'sh',
          argument,
        ],
        env,
      });
      const digest = createHash('sha256').update(argument).digest('hex');
      assert.deepEqual([known.text(), known.failed], [`${digest}  -\n200\n999\n`, undefined]);
    });
    await t.test(
      'a request that is cut by a resume is forgotten, and understood when said again',
      async () => {
        const long = shell('echo -n $LONG | wc -c', { env: [`LONG=${'x'.repeat(100_000)}`] });
        const id = next + 1;
        const whole = JSON.stringify({ process: JSON.stringify(processObject(long)), ...request(long) });
        const frames = encodeRequest(HOST_FRAME.exec, id, Buffer.from(whole));
        for (const cut of [HEADER_BYTES + MAX_PAYLOAD, 2 * (HEADER_BYTES + MAX_PAYLOAD) + 1000]) {
          machine.raw(frames.subarray(0, cut));
          await machine.connect();
          assert.ok(machine.hello?.processes.every(({ process }) => process !== id));
        }
        assert.equal((await finish(long)).text(), '100000\n');
      },
    );
    await t.test('a request over a mebibyte fails, and the next one is understood', async () => {
      const id = ++next;
      for (let i = 0; i < 40; i++) machine.send(HOST_FRAME.exec, id, Buffer.alloc(MAX_PAYLOAD, ' '), 1);
      machine.send(HOST_FRAME.exec, id, Buffer.from('{}'));
      const { failed } = await machine.ended(id);
      assert.equal(failed?.code, 125);
      assert.match(failed?.text ?? '', /too long/);
      machine.send(HOST_FRAME.forget, id, Buffer.alloc(0));
      assert.equal((await finish(shell('echo fine'))).text(), 'fine\n');
    });
    await t.test(
      'input that the guest has taken, and nobody read yet, outlives the host that sent it',
      async () => {
        const bytes = Buffer.from(Array.from({ length: 150_000 }, (_, i) => (i * 7) % 253));
        const read = 'while ! [ -e /tmp/read ]; do sleep 0.05; done; sha256sum';
        const known = await finish(shell(read, { stdin: true }), async (id) => {
          machine.input(id, bytes.subarray(0, 110_000)); // more than the pipe holds
          machine.stats = undefined;
          machine.send(HOST_FRAME.stats, 0, Buffer.alloc(0));
          await machine.until(() => machine.stats !== undefined, 'statistics'); // which come behind it
          await machine.connect();
          const resumed = machine.hello?.processes.find(({ process }) => process === id);
          assert.equal(resumed?.stdinConsumed, 110_000);
          const touch = ++next;
          machine.exec(touch, { args: ['touch', '/tmp/read'] });
          await machine.ended(touch);
          machine.send(HOST_FRAME.forget, touch, Buffer.alloc(0));
          await machine.until(() => machine.of(id).inputLimit >= bytes.length, 'room for input');
          machine.input(id, bytes.subarray(110_000));
          machine.endInput(id);
        });
        assert.equal(known.text().slice(0, 64), createHash('sha256').update(bytes).digest('hex'));
      },
    );
    await t.test('an exec that a resuming host does not name is killed and forgotten', async () => {
      const id = ++next;
      machine.exec(id, shell('echo up; exec sleep 1000'));
      await machine.until(() => machine.of(id).text() === 'up\n', 'the exec');
      machine.processes.delete(id);
      await machine.connect();
      assert.ok(machine.hello?.processes.every(({ process }) => process !== id));
      machine.processes.delete(id);
      assert.equal((await finish(shell('sleep 0.2; ps | grep -c "[s]leep 1000"'))).text(), '1\n'); // the one left behind above
    });
    machine.signal(0, 15);
    await machine.ended();
    assert.equal(workload.exit?.exitCode, 7);
    assert.equal(workload.text(), 'ready\ngot it\n');
    await t.test('exec after the end fails, and the end is said again to whoever connects', async () => {
      machine.exec(1000, shell('echo no'));
      assert.equal((await machine.ended(1000)).failed?.code, 125);
      workload.exit = undefined;
      await machine.connect();
      await machine.ended();
      assert.equal(machine.of(0).exit?.exitCode, 7);
    });
  });

  test('output stops at the window, goes on with each acknowledgement, and loses nothing when the host goes and comes', async () => {
    await using machine = await boot();
    const total = 10_485_760;
    machine.acknowledges = false;
    const workload = machine.start(shell(`yes | head -c ${total}; yes e | head -c 300000 >&2`));
    await machine.until(() => workload.offsets[0] === 262_144, 'a full window');
    // Stops for good: an answer to something asked now comes, and no byte more.
    machine.send(HOST_FRAME.stats, 0, Buffer.alloc(0));
    await machine.until(() => machine.stats !== undefined, 'statistics');
    assert.equal(workload.offsets[0], 262_144);
    machine.acknowledges = true;
    machine.acknowledge(0, 1);
    let reconnections = 0;
    for (const at of [600_000, 2_000_000, 5_000_000]) {
      await machine.until(() => workload.offsets[0] > at, `byte ${at}`, 30_000);
      await machine.connect();
      reconnections += 1;
    }
    await machine.ended();
    assert.equal(reconnections, 3);
    assert.equal(workload.offsets[0], total);
    assert.equal(workload.offsets[1], 300_000);
    assert.equal(
      createHash('sha256').update(Buffer.concat(workload.chunks[0])).digest('hex'),
      yesDigest(total),
    );
    assert.equal(workload.exit?.exitCode, 0);
  });

  test('costs next to no CPU while idle, with and without a host', async () => {
    await using machine = await boot();
    const workload = machine.start(shell('echo up; exec sleep 1000'));
    await machine.until(() => workload.text() === 'up\n', 'the workload');
    const usedMs = () => {
      const fields = readFileSync(`/proc/${machine.pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
      return (Number(fields[11]) + Number(fields[12])) * 10;
    };
    for (const connected of [true, false]) {
      if (!connected) machine.disconnect();
      await delay(1000); // what the start left to do
      const before = usedMs();
      await delay(2000); // the time that is measured
      const spent = usedMs() - before;
      assert.ok(spent <= 200, `${spent} ms of 2000 with${connected ? '' : 'out'} a host`);
    }
    await machine.connect();
    assert.equal(machine.of(0).started, true);
  });

  test('a workload that takes too much memory is killed, told as such, and the guest lives', async () => {
    await using machine = await boot({ memoryMiB: 192 });
    const workload = machine.start({ args: ['awk', 'BEGIN { while (1) kept[i++] = sprintf("%5000d", i) }'] });
    await machine.until(() => workload.exit !== undefined, 'the end', 60_000);
    assert.deepEqual([workload.exit?.signal, workload.exit?.oomKilled], [9, true]);
    machine.send(HOST_FRAME.stats, 0, Buffer.alloc(0));
    await machine.until(() => machine.stats !== undefined, 'statistics');
    assert.ok(machine.stats!.oomKills >= 1);
  });
});
