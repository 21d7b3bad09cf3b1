// Which part of an output is given: compared with what a plain reading of the question gives.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { OutputLog } from '@cloister/sandbox/outputLog.ts';
import fc from 'fast-check';
import { readLogs } from './logs.ts';

type Asked = Parameters<typeof readLogs>[1];

const never = new AbortController().signal;
let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cloister-logs-'));
});
afterEach(async () => await rm(folder, { recursive: true }));

async function textOf(log: Parameters<typeof readLogs>[0], asked: Partial<Asked>): Promise<string> {
  const parts: Buffer[] = [];
  for await (const { bytes } of readLogs(log, { follow: false, ...asked }, never))
    parts.push(Buffer.from(bytes));
  return Buffer.concat(parts).toString('latin1');
}

/** The last so many lines, the last one with or without its end. */
function lastLines(text: string, count: number): string {
  const lines = text.split(/(?<=\n)/);
  return text === '' || count === 0 ? '' : lines.slice(-count).join('');
}

describe('the tail of an output', () => {
  test('is its last bytes, its last lines, or the shorter of the two, of what is not older than asked', async () => {
    const piece = fc.record({
      fd: fc.constantFrom(1 as const, 2 as const),
      text: fc.string({ unit: fc.constantFrom('a', 'b', '\n'), minLength: 1, maxLength: 30 }),
      padding: fc.constantFrom(0, 0, 100_000, 300_000), // so that there are several places to begin at
    });
    const asked = fc.record(
      { tailBytes: fc.nat(600_000), tailLines: fc.nat(12), sinceMs: fc.nat(60) },
      { requiredKeys: [] },
    );
    let run = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 16 }), asked, async (pieces, query) => {
        const log = OutputLog.create(join(folder, `${run++}`));
        const offsets = { 1: 0, 2: 0 };
        for (const [atMs, { fd, text, padding }] of pieces.entries()) {
          const whole = Buffer.from('.'.repeat(padding) + text);
          for (let at = 0; at < whole.length; at += 32_768) {
            const part = whole.subarray(at, at + 32_768);
            log.append(fd, offsets[fd], part, atMs);
            offsets[fd] += part.length;
          }
          await new Promise((resolve) => setImmediate(resolve));
        }
        await log.finish();
        const left: string[] = [];
        for await (const record of log.read({}))
          if ('bytes' in record && record.atMs >= (query.sinceMs ?? 0)) left.push(record.bytes.toString());
        const all = left.join('');
        const byBytes =
          query.tailBytes === undefined ? all : all.slice(Math.max(0, all.length - query.tailBytes));
        const byLines = query.tailLines === undefined ? all : lastLines(all, query.tailLines);
        const expected = byBytes.length < byLines.length ? byBytes : byLines;
        assert.equal(await textOf(log, query as Partial<Asked>), expected);
      }),
      { numRuns: 100 },
    );
  });

  test('is whole though older output is rotated away between looking for it and reading it', async () => {
    const log = OutputLog.create(folder, {}, { segmentBytes: 65_536, maxSegments: 3 });
    let offset = 0;
    const write = async (line: string, until: () => boolean): Promise<void> => {
      while (!until()) {
        log.append(1, offset, Buffer.from(line), 1);
        offset += line.length;
        await new Promise((resolve) => setImmediate(resolve));
      }
    };
    await write(`${'old'.repeat(1000)}\n`, () => log.endPosition > 150_000);
    let reads = 0;
    const rotating = {
      get oldestPosition() {
        return log.oldestPosition;
      },
      async *read(options: Parameters<OutputLog['read']>[0]) {
        reads += 1;
        if (reads === 2) {
          await write('new\n', () => log.oldestPosition > 100_000);
          await log.finish();
        }
        yield* log.read(options);
      },
    };
    const text = await textOf(rotating, { tailLines: 10 });
    assert.equal(reads, 2);
    assert.equal(text, await textOf(log, {}), 'all that is left, and nothing of it left out');
  });
});

test('who follows gets the tail, and then what is written', async () => {
  const written = Promise.withResolvers<void>();
  const log = OutputLog.create(folder, { onWritten: () => written.resolve() });
  log.append(1, 0, Buffer.from('one\ntwo\n'), 1);
  await written.promise;
  const parts = readLogs(log, { follow: true, tailLines: 1 }, never);
  assert.equal(String((await parts.next()).value?.bytes), 'two\n');
  const next = parts.next();
  log.append(2, 0, Buffer.from('three'), 2);
  const { fd, bytes } = (await next).value ?? {};
  assert.deepEqual([fd, String(bytes)], [2, 'three']);
  const end = parts.next();
  await log.finish();
  assert.equal((await end).done, true);
});
