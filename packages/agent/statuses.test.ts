// What a node has to say: the newest word on each allocation, in every session, newer than all of an earlier life.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { AllocationStatus } from '@cloister/link/messages.ts';
import { StatusBook } from './statuses.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cloister-statuses-'));
});
afterEach(async () => await rm(folder, { recursive: true }));

const brief = ({ allocationId, state }: AllocationStatus): string => `${allocationId} ${state}`;

async function take(news: AsyncGenerator<AllocationStatus>, count: number): Promise<string[]> {
  const taken: string[] = [];
  while (taken.length < count) taken.push(brief((await news.next()).value));
  return taken;
}

test('many changes are one word, and each session hears all that is kept, then what changes', async () => {
  const book = await StatusBook.open(folder);
  book.tell('a', { state: 'pulling' });
  book.tell('b', { state: 'pulling' });
  book.tell('a', { state: 'starting' });
  const first = new AbortController();
  const news = book.news(first.signal);
  assert.deepEqual(await take(news, 2), ['a starting', 'b pulling']);
  const waiting = news.next();
  book.tell('b', { state: 'failed' });
  assert.equal(brief((await waiting).value), 'b failed');
  const end = news.next();
  first.abort();
  assert.equal((await end).done, true);
  book.tell('a', { state: 'exited' }); // while there is no session
  book.forget('b');
  book.tell('c', { state: 'running' });
  assert.deepEqual(await take(book.news(new AbortController().signal), 2), ['a exited', 'c running']);
});

test('what was under way when a session broke is said again in the next', async () => {
  const book = await StatusBook.open(folder);
  book.tell('a', { state: 'running' });
  const first = new AbortController();
  const news = book.news(first.signal);
  await news.next(); // taken, and never arrived
  first.abort();
  await news.return(undefined);
  assert.deepEqual(await take(book.news(new AbortController().signal), 1), ['a running']);
});

test('sequences grow with each change, and over restarts, whatever the clock says', async () => {
  const sequences: number[] = [];
  for (let life = 0; life < 3; life++) {
    const book = await StatusBook.open(folder);
    for (let i = 0; i < 3; i++) {
      book.tell('a', { state: 'running' });
      sequences.push(book.get('a')?.sequence ?? 0);
    }
  }
  assert.deepEqual(
    sequences,
    [...new Set(sequences)].sort((a, b) => a - b),
  );
  assert.ok(sequences.every(Number.isSafeInteger));
});

test('a count of lives that is damaged is not begun anew: all that is said would be too old', async () => {
  await writeFile(join(folder, 'life'), '');
  await assert.rejects(StatusBook.open(folder), { code: 'internal' });
});
