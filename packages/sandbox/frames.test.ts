// The parser of what the guest says, against whatever a guest may write.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  encodeRequest,
  type GuestMessage,
  GuestParser,
  GuestProtocolError,
  HEADER_BYTES,
  HOST_FRAME,
  MAX_HUNT_BYTES,
  MAX_PAYLOAD,
  MAX_PROCESSES,
  MAX_REQUEST_BYTES,
  NONCE_BYTES,
  printable,
} from './frames.ts';
import { encodeMessage, guestFrame, HELLO_OF_NOTHING } from './guestFixture.ts';

const NONCE = Buffer.from('0123456789abcdef');
const MAX_HELD_BYTES = HEADER_BYTES + MAX_PAYLOAD;

const record = <Value>(model: { [Key in keyof Value]: fc.Arbitrary<Value[Key]> }): fc.Arbitrary<Value> =>
  fc.record(model, { noNullPrototype: true }) as fc.Arbitrary<Value>;
const process = fc.nat(65_535);
const offset = fc.maxSafeNat();
const outputFd = fc.constantFrom<1 | 2>(1, 2);
const anyBytes = (minLength: number, maxLength: number) =>
  fc.uint8Array({ minLength, maxLength, size: 'max' }).map((bytes) => Buffer.from(bytes));
const hello: fc.Arbitrary<Extract<GuestMessage, { type: 'hello' }>> = record({
  type: fc.constant('hello'),
  processes: fc.uniqueArray(
    record({
      process,
      state: fc.constantFrom('none', 'starting', 'running', 'ended'),
      stdinConsumed: offset,
      stdinLimit: offset,
      stdoutBase: offset,
      stderrBase: offset,
    }),
    { selector: (entry) => entry.process, maxLength: MAX_PROCESSES + 1 },
  ),
});
const message: fc.Arbitrary<GuestMessage> = fc.oneof(
  record({ type: fc.constant('started'), process }),
  record({
    type: fc.constant('data'),
    process,
    fd: outputFd,
    offset,
    bytes: fc.oneof(anyBytes(1, 40), anyBytes(MAX_PAYLOAD - 8, MAX_PAYLOAD - 8)),
  }),
  record({ type: fc.constant('eof'), process, fd: outputFd, offset }),
  record({ type: fc.constant('ack'), process, offset, limit: offset }),
  record({
    type: fc.constant('exit'),
    process,
    exitCode: fc.nat(255),
    signal: fc.constant(undefined),
    oomKilled: fc.boolean(),
  }),
  fc.integer({ min: 1, max: 64 }).chain((signal) =>
    record({
      type: fc.constant('exit'),
      process,
      exitCode: fc.constant(128 + signal),
      signal: fc.constant(signal),
      oomKilled: fc.boolean(),
    }),
  ),
  record({
    type: fc.constant('failed'),
    process,
    code: fc.nat(255),
    text: fc.string({ unit: 'binary', maxLength: 300 }).map(printable),
  }),
  record({
    type: fc.constant('stats'),
    stats: record({
      memoryBytes: offset,
      memoryPeakBytes: offset,
      cpuMicros: offset,
      processes: offset,
      oomKills: offset,
    }),
  }),
);

/** What is pushed in pieces of these sizes, again and again; what is kept in between is bounded. */
function pushInPieces(parser: GuestParser, bytes: Buffer, sizes: readonly number[]): GuestMessage[] {
  const messages: GuestMessage[] = [];
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = sizes[turn % sizes.length] ?? 1;
    messages.push(...parser.push(bytes.subarray(at, at + size)));
    assert.ok(parser.heldBytes <= MAX_HELD_BYTES, `${parser.heldBytes} bytes are kept`);
    at += size;
  }
  return messages;
}

const pieceSizes = fc.array(fc.oneof(fc.integer({ min: 1, max: 30 }), fc.integer({ min: 1, max: 70_000 })), {
  minLength: 1,
  maxLength: 12,
});

function synchronized(): GuestParser {
  const parser = new GuestParser(NONCE);
  assert.equal([...parser.push(encodeMessage(HELLO_OF_NOTHING, NONCE))].length, 1);
  return parser;
}

test('what a guest says is understood the same, wherever it is cut and whatever zeros lie between', () => {
  fc.assert(
    fc.property(
      hello,
      fc.array(fc.tuple(fc.nat(50), message), { maxLength: 12 }),
      pieceSizes,
      (first, rest, sizes) => {
        const bytes = Buffer.concat([
          encodeMessage(first, NONCE),
          ...rest.flatMap(([zeros, one]) => [Buffer.alloc(zeros), encodeMessage(one)]),
        ]);
        const expected = [first, ...rest.map(([, one]) => one)];
        assert.deepEqual(pushInPieces(new GuestParser(NONCE), bytes, sizes), expected);
      },
    ),
    { numRuns: 150 },
  );
});

test('changed bytes are understood or refused as a breach of the protocol, and nothing else', () => {
  let refused = 0;
  fc.assert(
    fc.property(
      fc.array(message, { minLength: 1, maxLength: 4 }),
      fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 6 }),
      pieceSizes,
      (messages, changes, sizes) => {
        const bytes = Buffer.concat(messages.map((one) => encodeMessage(one)));
        for (const [at, value] of changes) bytes[at % Math.min(bytes.length, 80)] = value;
        try {
          pushInPieces(synchronized(), bytes, sizes);
        } catch (error) {
          assert.ok(error instanceof GuestProtocolError, String(error));
          refused += 1;
        }
      },
    ),
    { numRuns: 400 },
  );
  assert.ok(refused > 50, `only ${refused} were refused`);
});

test('any bytes at all are understood or refused as a breach of the protocol', () => {
  fc.assert(
    fc.property(anyBytes(0, 200), pieceSizes, fc.boolean(), (bytes, sizes, hunting) => {
      try {
        pushInPieces(hunting ? new GuestParser(NONCE) : synchronized(), bytes, sizes);
      } catch (error) {
        assert.ok(error instanceof GuestProtocolError, String(error));
      }
    }),
    { numRuns: 400 },
  );
});

test('HELLO is found behind a mebibyte of what an earlier connection left, and not behind more', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: MAX_HUNT_BYTES }),
      pieceSizes,
      fc.nat(255),
      (garbage, sizes, fill) => {
        const bytes = Buffer.concat([
          Buffer.alloc(garbage, Buffer.from([0x81, fill, 0, 0x81, 0x10])),
          encodeMessage(HELLO_OF_NOTHING, NONCE),
          encodeMessage({ type: 'started', process: 7 }),
        ]);
        const found = pushInPieces(new GuestParser(NONCE), bytes, [...sizes, 60_000]);
        assert.deepEqual(found, [HELLO_OF_NOTHING, { type: 'started', process: 7 }]);
      },
    ),
    { numRuns: 20, examples: [[MAX_HUNT_BYTES, [65_536], 0]] },
  );
  const more = Buffer.alloc(MAX_HUNT_BYTES + 65_536, 0x81);
  assert.throws(() => pushInPieces(new GuestParser(NONCE), more, [65_536]), GuestProtocolError);
});

test('a HELLO with another nonce, or the nonce in another frame, is not the answer', () => {
  const parser = new GuestParser(NONCE);
  const others = [
    encodeMessage(HELLO_OF_NOTHING, Buffer.from('fedcba9876543210')),
    encodeMessage({ type: 'data', process: 0, fd: 1, offset: 0, bytes: NONCE }),
  ];
  assert.deepEqual([...parser.push(Buffer.concat(others))], []);
  assert.equal(parser.synchronized, false);
  assert.equal([...parser.push(encodeMessage(HELLO_OF_NOTHING, NONCE))].length, 1);
});

test('a length over the maximum is refused with its header, before a byte of it is waited for', () => {
  for (const length of [MAX_PAYLOAD + 1, 0xffff_ffff]) {
    for (const sizes of [[HEADER_BYTES], [1]]) {
      const header = guestFrame(0x84, Buffer.alloc(0));
      header.writeUInt32LE(length, 4);
      assert.throws(() => pushInPieces(synchronized(), header, sizes), /a frame of \d+ bytes/);
    }
  }
});

test('zeros between frames cost no memory, however many', () => {
  const parser = synchronized();
  const zeros = Buffer.alloc(1_048_576);
  for (let i = 0; i < 64; i++) {
    assert.deepEqual([...parser.push(zeros)], []);
    assert.equal(parser.heldBytes, 0);
  }
});

test('frames of wrong shape are refused', () => {
  const wrong: readonly (readonly [string, Buffer])[] = [
    ['an unknown type', guestFrame(0x8b, Buffer.alloc(0))],
    ["a host's type", guestFrame(HOST_FRAME.ack, Buffer.alloc(16))],
    ['output of no byte', guestFrame(0x84, Buffer.alloc(8), 0, 1)],
    ['output of standard input', guestFrame(0x84, Buffer.alloc(9), 0, 0)],
    ['an offset beyond 2^53', guestFrame(0x85, Buffer.from('0000000000002000', 'hex'), 0, 1)],
    ['an ACK cut short', guestFrame(0x86, Buffer.alloc(15))],
    ['signal 65', guestFrame(0x88, Buffer.from([1, 65, 0]))],
    ['signal 0', guestFrame(0x88, Buffer.from([1, 0, 0]))],
    ['FAILED without a code', guestFrame(0x89, Buffer.alloc(0))],
    ['STATS too long', guestFrame(0x8a, Buffer.alloc(41))],
    ['STARTED with something', guestFrame(0x83, Buffer.alloc(1))],
  ];
  for (const [name, bytes] of wrong)
    assert.throws(() => [...synchronized().push(bytes)], GuestProtocolError, name);
  const entry = {
    process: 3,
    state: 'none',
    stdinConsumed: 0,
    stdinLimit: 0,
    stdoutBase: 0,
    stderrBase: 0,
  } as const;
  const twice = encodeMessage({ type: 'hello', processes: [entry, entry] }, NONCE);
  assert.throws(() => [...new GuestParser(NONCE).push(twice)], /process 3 twice/);
});

test('text of the guest reaches nobody with control characters in it', () => {
  const failed = { type: 'failed', process: 0, code: 125, text: '\u001b[31mred\u0007\u009b' } as const;
  const [parsed] = synchronized().push(encodeMessage(failed));
  assert.deepEqual(parsed, { ...failed, text: '?[31mred??' });
});

test('a request is cut into frames of which all but the last say that more follows', () => {
  for (const bytes of [0, 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, 100_000, MAX_REQUEST_BYTES]) {
    const payload = Buffer.alloc(bytes, 'request ');
    const frames = encodeRequest(HOST_FRAME.exec, 5, payload);
    const parts: Buffer[] = [];
    for (let at = 0; at < frames.length; ) {
      const length = frames.readUInt32LE(at + 4);
      assert.equal(frames[at + 1], at + HEADER_BYTES + length < frames.length ? 1 : 0);
      parts.push(frames.subarray(at + HEADER_BYTES, at + HEADER_BYTES + length));
      at += HEADER_BYTES + length;
    }
    assert.deepEqual(Buffer.concat(parts), payload);
  }
  assert.throws(
    () => encodeRequest(HOST_FRAME.exec, 5, Buffer.alloc(MAX_REQUEST_BYTES + 1)),
    /1048577 bytes/,
  );
  assert.equal(NONCE.length, NONCE_BYTES);
});
