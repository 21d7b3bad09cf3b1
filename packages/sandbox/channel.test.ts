// The host's end of the channel, against a guest that behaves and against those that do not.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { withTimeout } from '@cloister/kit/wait.ts';
import { type ChannelListener, GuestChannel } from './channel.ts';
import {
  type GuestMessage,
  type GuestProcess,
  GuestProtocolError,
  HOST_FRAME,
  MAX_REQUEST_BYTES,
  OUTPUT_WINDOW_BYTES,
  type ResumedProcess,
} from './frames.ts';
import { encodeMessage, FakeGuest } from './guestFixture.ts';

const WORKLOAD: GuestProcess = {
  process: 0,
  state: 'running',
  stdinConsumed: 0,
  stdinLimit: 65_536,
  stdoutBase: 0,
  stderrBase: 0,
};
const RESUMED: ResumedProcess = {
  process: 0,
  stdoutAck: 0,
  stdoutLimit: OUTPUT_WINDOW_BYTES,
  stderrAck: 0,
  stderrLimit: OUTPUT_WINDOW_BYTES,
};

interface Pair {
  readonly guest: FakeGuest;
  readonly channel: GuestChannel;
  readonly messages: GuestMessage[];
  readonly [Symbol.dispose]: () => void;
}

function connect(
  options: { resumed?: readonly ResumedProcess[]; message?: ChannelListener['message'] } = {},
): Pair {
  const guest = new FakeGuest();
  const messages: GuestMessage[] = [];
  const channel = new GuestChannel(guest.hostEnd, {
    resumedProcesses: () => options.resumed ?? [],
    message: (message) => {
      messages.push(message);
      options.message?.(message);
    },
  });
  const dispose = () => {
    channel.close();
    guest.close();
  };
  return { guest, channel, messages, [Symbol.dispose]: dispose };
}

/** A channel on which a workload runs. */
async function running(message?: ChannelListener['message']): Promise<Pair> {
  const pair = connect({ resumed: [RESUMED], ...(message ? { message } : {}) });
  await pair.guest.greet({ type: 'hello', processes: [WORKLOAD] });
  await pair.channel.ready;
  return pair;
}

async function endOf(channel: GuestChannel): Promise<Error | undefined> {
  return await withTimeout(channel.closed, 5_000, () => new Error('the channel is still open'));
}

/** Lets everything else run until `check` holds. */
async function until(check: () => boolean, what: string): Promise<void> {
  for (const deadline = performance.now() + 5_000; !check(); ) {
    assert.ok(performance.now() < deadline, `no ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;

test('RESUME is said again, the same, until HELLO comes, and not after that', async () => {
  const before = timers();
  using pair = connect({ resumed: [RESUMED] });
  const first = await pair.guest.next();
  assert.equal(first.type, HOST_FRAME.resume);
  const second = await pair.guest.next();
  assert.deepEqual(second, first);
  const third = await pair.guest.greet({ type: 'hello', processes: [WORKLOAD] });
  assert.deepEqual(third, first.payload);
  await pair.channel.ready;
  assert.deepEqual(pair.messages, [{ type: 'hello', processes: [WORKLOAD] }]);
  assert.equal(timers(), before);
});

test('a guest that hangs up before HELLO is reported to who waits for it', async () => {
  using pair = connect();
  await pair.guest.next();
  pair.guest.close();
  await assert.rejects(pair.channel.ready, { code: 'sandbox.vmm-died' });
  assert.equal(await endOf(pair.channel), undefined);
});

describe('a breach of the protocol ends the channel:', () => {
  const data = (offset: number, bytes: number): GuestMessage => ({
    type: 'data',
    process: 0,
    fd: 1,
    offset,
    bytes: Buffer.alloc(bytes, 'x'),
  });
  const eof = (fd: 1 | 2, offset: number): GuestMessage => ({ type: 'eof', process: 0, fd, offset });
  const ack = (offset: number, limit: number): GuestMessage => ({ type: 'ack', process: 0, offset, limit });
  const exit: GuestMessage = { type: 'exit', process: 0, exitCode: 0, signal: undefined, oomKilled: false };
  const stats: GuestMessage = {
    type: 'stats',
    stats: { memoryBytes: 1, memoryPeakBytes: 1, cpuMicros: 1, processes: 1, oomKills: 0 },
  };
  const full = Array.from({ length: 16 }, (_, i) => data(i * 16_384, 16_384));
  const cases: readonly (readonly [string, readonly GuestMessage[]])[] = [
    ['HELLO again', [{ type: 'hello', processes: [] }]],
    ['STATS that nobody asked for', [stats]],
    ['output that goes back', [data(0, 10), data(5, 10)]],
    ['output with a gap', [data(0, 10), data(11, 10)]],
    ['output beyond its limit', [...full, data(OUTPUT_WINDOW_BYTES, 1)]],
    ['output behind its end', [eof(1, 0), data(0, 1)]],
    ['an end in the wrong place', [data(0, 10), eof(1, 9)]],
    ['a second end of output', [eof(1, 0), eof(1, 0)]],
    ['EXIT before the output has ended', [eof(1, 0), exit]],
    ['EXIT twice', [eof(1, 0), eof(2, 0), exit, exit]],
    ['an ACK of what was never sent', [ack(1, 65_537)]],
    ['an ACK whose limit goes back', [ack(0, 65_535)]],
    ['an ACK with a limit beyond its window', [ack(0, 65_537)]],
  ];
  for (const [name, said] of cases) {
    test(name, async () => {
      using pair = await running();
      for (const message of said) await pair.guest.send(encodeMessage(message));
      assert.ok((await endOf(pair.channel)) instanceof GuestProtocolError);
      assert.deepEqual(pair.messages.slice(1), said.slice(0, -1)); // all but the last one
    });
  }
  test('an ACK whose offset goes back', async () => {
    using pair = await running();
    await pair.channel.sendStdin(0, 0, Buffer.alloc(100));
    await pair.guest.send(encodeMessage(ack(100, 65_600)), encodeMessage(ack(99, 65_600)));
    assert.ok((await endOf(pair.channel)) instanceof GuestProtocolError);
    assert.deepEqual(pair.messages.slice(1), [ack(100, 65_600)]);
  });
  test('output that was lost between two hosts', async () => {
    using pair = connect({ resumed: [RESUMED] });
    await pair.guest.greet({ type: 'hello', processes: [{ ...WORKLOAD, stdoutBase: 1 }] });
    await assert.rejects(pair.channel.ready, GuestProtocolError);
    assert.deepEqual(pair.messages, []);
  });
  test('garbage', async () => {
    using pair = await running();
    await pair.guest.send(Buffer.alloc(100, 'garbage'));
    assert.ok((await endOf(pair.channel)) instanceof GuestProtocolError);
  });
  test('garbage in place of HELLO', async () => {
    using pair = connect();
    await pair.guest.next();
    for (let i = 0; i < 20; i++) await pair.guest.send(Buffer.alloc(65_536, 0x81));
    await assert.rejects(pair.channel.ready, GuestProtocolError);
  });
  test("a listener's own error", async () => {
    using pair = await running(({ type }) => {
      if (type === 'started') throw new RangeError('no');
    });
    pair.channel.exec(1, {});
    await pair.guest.next();
    await pair.guest.send(encodeMessage({ type: 'started', process: 1 }));
    assert.ok((await endOf(pair.channel)) instanceof RangeError);
  });
});

test('what concerns a process that is forgotten, or never was, is passed over', async () => {
  using pair = await running();
  pair.channel.exec(1, {});
  pair.channel.forget(1);
  for (const process of [1, 2]) {
    await pair.guest.send(
      encodeMessage({ type: 'started', process }),
      encodeMessage({ type: 'data', process, fd: 1, offset: 77, bytes: Buffer.from('x') }),
      encodeMessage({ type: 'ack', process, offset: 9, limit: 1 }),
    );
  }
  pair.channel.requestStats();
  await pair.guest.send(
    encodeMessage({
      type: 'stats',
      stats: { memoryBytes: 1, memoryPeakBytes: 1, cpuMicros: 1, processes: 1, oomKills: 0 },
    }),
    encodeMessage({ type: 'eof', process: 0, fd: 1, offset: 0 }),
  );
  await until(() => pair.messages.length === 3, 'three messages');
  assert.deepEqual(
    pair.messages.map(({ type }) => type),
    ['hello', 'stats', 'eof'],
  );
});

test('a flood of tiny frames is read at the rate that is allowed, and nothing of it is lost', async () => {
  const flood = 30_000;
  const done = Promise.withResolvers<void>();
  let seen = 0;
  using pair = await running((message) => {
    if (message.type === 'data' && ++seen === flood) done.resolve();
  });
  const startedAt = performance.now();
  let bytes: Buffer[] = [];
  for (let offset = 0; offset < flood; offset++) {
    bytes.push(encodeMessage({ type: 'data', process: 0, fd: 1, offset, bytes: Buffer.from('x') }));
    if (bytes.length < 1000 && offset < flood - 1) continue;
    await pair.guest.send(Buffer.concat(bytes));
    bytes = [];
  }
  await withTimeout(done.promise, 20_000, () => new Error(`only ${seen} came`));
  // 25 a millisecond. The last window need not end, and one chunk may be on its way.
  const tookMs = performance.now() - startedAt;
  assert.ok(tookMs >= 900 && tookMs < 5_000, `${flood} frames in ${tookMs} ms`);
});

test('a channel that is closed while it holds a flood back leaves no timer', async () => {
  const before = timers();
  using pair = await running();
  const frame = encodeMessage({ type: 'started', process: 9 });
  const flood = pair.guest.send(...Array.from({ length: 40 }, () => Buffer.concat(Array(1000).fill(frame))));
  await until(() => pair.guest.hostEnd.isPaused(), 'pause');
  assert.equal(timers(), before + 1);
  pair.channel.close();
  assert.equal(timers(), before);
  assert.equal(await endOf(pair.channel), undefined);
  pair.guest.close();
  await flood;
});

test('a guest that does not read is given up, and who waits to send is let go', async () => {
  using pair = await running();
  const sending = pair.channel.sendStdin(0, 0, Buffer.alloc(65_536));
  let sent = 0;
  while (!pair.guest.hostEnd.destroyed && sent < 6 * 1_048_576) {
    pair.channel.exec(1, { argument: 'x'.repeat(500_000) });
    sent += 500_000;
  }
  const error = await endOf(pair.channel);
  assert.ok(error instanceof GuestProtocolError && /does not read/.test(error.message), String(error));
  assert.ok(sent > 4_000_000 && sent < 5_500_000, `given up after ${sent} bytes`);
  await sending;
  pair.channel.signal(0, 9); // into nothing
});

test('a request of up to a mebibyte is said in parts, and a longer one is refused with both sizes', async () => {
  using pair = await running();
  const request = { argument: 'x'.repeat(300_000) };
  pair.channel.exec(4, request);
  pair.channel.signal(4, 15);
  const parts: Buffer[] = [];
  for (;;) {
    const frame = await pair.guest.next();
    assert.deepEqual([frame.type, frame.process], [HOST_FRAME.exec, 4]);
    parts.push(frame.payload);
    if (frame.fd === 0) break;
  }
  assert.deepEqual(JSON.parse(Buffer.concat(parts).toString()), request);
  assert.equal((await pair.guest.next()).type, HOST_FRAME.signal);
  assert.throws(() => pair.channel.exec(5, { argument: 'x'.repeat(MAX_REQUEST_BYTES) }), {
    code: 'request.invalid',
    message: /take 1048591 bytes.* takes 1048576/,
  });
  assert.throws(() => pair.channel.start({ argument: '\u00e9'.repeat(600_000) }), {
    code: 'request.invalid',
  });
});

test('standard input goes in order, in frames, and waits for a slow reader', async () => {
  using pair = await running();
  const bytes = Buffer.from(Array.from({ length: 65_536 }, (_, i) => i % 251));
  let handed = false;
  const sending = pair.channel.sendStdin(0, 0, bytes).then(() => {
    handed = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(handed, false);
  let received = Buffer.alloc(0);
  while (received.length < bytes.length) {
    const { type, payload } = await pair.guest.next();
    assert.equal(type, HOST_FRAME.data);
    assert.equal(Number(payload.readBigUInt64LE(0)), received.length);
    received = Buffer.concat([received, payload.subarray(8)]);
  }
  await sending;
  assert.deepEqual(received, bytes);
});

test('nothing is left behind when a channel is closed, however early', async () => {
  const before = timers();
  using early = connect();
  early.channel.close();
  await assert.rejects(early.channel.ready);
  using pair = await running();
  pair.channel.close();
  pair.channel.close();
  assert.equal(await endOf(pair.channel), undefined);
  assert.equal(timers(), before);
  for (const { guest } of [early, pair]) assert.ok(guest.hostEnd.destroyed);
  await pair.guest.send(encodeMessage({ type: 'started', process: 0 }));
  assert.equal(pair.messages.length, 1);
});
