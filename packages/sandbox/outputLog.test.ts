// The output log: order, resumption, rotation and crashes.
import assert from 'node:assert/strict';
import { appendFile, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import type { OutputFd } from './frames.ts';
import { LogGap, OutputLog } from './outputLog.ts';

describe('the output log', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloister-log-'));
  });
  afterEach(async () => {
    await rm(folder, { recursive: true });
  });

  async function readAll(log: OutputLog): Promise<{ out: Buffer; err: Buffer; gaps: number }> {
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    let gaps = 0;
    for await (const record of log.read({})) {
      if (record instanceof LogGap) gaps += record.lostBytes;
      else (record.fd === 1 ? out : err).push(record.bytes);
    }
    return { out: Buffer.concat(out), err: Buffer.concat(err), gaps };
  }

  it('gives back both streams, byte for byte', async () => {
    const log = await OutputLog.open(folder);
    const binary = Buffer.from(Array.from({ length: 70_000 }, (_, i) => i & 255));
    for (let at = 0; at < binary.length; at += 32_000) log.append(1, at, binary.subarray(at, at + 32_000), 1);
    log.append(2, 0, Buffer.from('oops'), 2);
    log.end(1, 3);
    await log.finish();
    const { out, err, gaps } = await readAll(log);
    assert.deepEqual(out, binary);
    assert.equal(err.toString(), 'oops');
    assert.equal(gaps, 0);
  });

  it('skips what a resumed guest sends again, and refuses a gap', async () => {
    const log = await OutputLog.open(folder);
    log.append(1, 0, Buffer.from('hello'), 1);
    log.append(1, 3, Buffer.from('lo world'), 1);
    assert.throws(() => log.append(1, 100, Buffer.from('x'), 1), RangeError);
    await log.finish();
    assert.equal((await readAll(log)).out.toString(), 'hello world');
  });

  it('finds its offsets again after a crash, and cuts a torn record away', async () => {
    const log = await OutputLog.open(folder, {}, { segmentBytes: 64, maxSegments: 4 });
    for (let i = 0; i < 30; i++) log.append(1, i * 10, Buffer.alloc(10, 65 + (i % 26)), i);
    log.append(2, 0, Buffer.from('err'), 99);
    await log.finish();
    const last = (await readdir(folder)).sort().at(-1)!;
    await appendFile(join(folder, last), Buffer.from([200, 0, 0, 0, 1, 0, 0]));
    const again = await OutputLog.open(folder, {}, { segmentBytes: 64, maxSegments: 4 });
    assert.equal(again.written(1), 300);
    assert.equal(again.written(2), 3);
    again.append(1, 300, Buffer.from('more'), 100);
    await again.finish();
    assert.ok((await readAll(again)).out.toString().endsWith('more'));
  });

  it('remembers that a stream has ended', async () => {
    const log = await OutputLog.open(folder);
    log.append(1, 0, Buffer.from('x'), 1);
    log.end(1, 1);
    await log.finish();
    const again = await OutputLog.open(folder);
    assert.deepEqual([again.ended(1), again.ended(2)], [true, false]);
    await again.finish();
  });

  it('drops the oldest segments, and tells a reader how much is gone', async () => {
    const log = await OutputLog.open(folder, {}, { segmentBytes: 1000, maxSegments: 3 });
    for (let i = 0; i < 100; i++) log.append(1, i * 100, Buffer.alloc(100, i), i);
    await log.finish();
    assert.ok((await readdir(folder)).length <= 3);
    const { out, gaps } = await readAll(log);
    assert.ok(gaps > 0);
    assert.equal(out.at(-1), 99);
  });

  it('holds the writer back rather than lose what a pinned reader has yet to read', async () => {
    let written = 0;
    const log = await OutputLog.open(
      folder,
      {
        onWritten: (_fd: OutputFd, offset) => {
          written = offset;
        },
      },
      { segmentBytes: 1000, maxSegments: 3 },
    );
    const reader = log.read({ follow: true, pin: true });
    log.append(1, 0, Buffer.alloc(100, 0), 0);
    const first = await reader.next();
    assert.ok(!(first.value instanceof LogGap));
    for (let i = 1; i < 1000; i++) log.append(1, i * 100, Buffer.alloc(100, i & 255), i);
    await new Promise((resolve) => setImmediate(resolve));
    let total = 100;
    let peak = 0;
    const finished = log.finish();
    for await (const record of reader) {
      assert.ok(!(record instanceof LogGap), 'nothing may be lost');
      total += record.bytes.length;
      peak = Math.max(peak, written - total);
    }
    await finished;
    assert.equal(total, 100_000);
    assert.ok(peak <= 131_072 + 4000, `the writer was ${peak} bytes ahead`);
  });

  it('lets a follower wait for more and end with the log', async () => {
    const log = await OutputLog.open(folder);
    const seen: string[] = [];
    const follower = (async () => {
      for await (const record of log.read({ follow: true }))
        if (!(record instanceof LogGap)) seen.push(record.bytes.toString());
    })();
    log.append(1, 0, Buffer.from('a'), 1);
    await new Promise((resolve) => setImmediate(resolve));
    log.append(2, 0, Buffer.from('b'), 1);
    await log.finish();
    await follower;
    assert.deepEqual(seen, ['a', 'b']);
  });
});
