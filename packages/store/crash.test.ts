// What kill -9 must not take away: a child process writes and says what was acknowledged, is killed at any moment,
// and what it left is compared with what it said. Each round goes on in the folder of the one before.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { openEmbeddedStore } from './embedded.ts';
import { collect } from './harness.ts';
import type { KeyValue, Store } from './store.ts';

const ROUNDS = 8;
const MAX_ACKS = 600;
const WRITER = join(import.meta.dirname, 'crashWriter.ts');

/** The newest acknowledged value of each writer, and the newest acknowledged revision. */
interface Acknowledged {
  readonly values: Map<string, number>;
  revision: number;
}

test('whatever was acknowledged is there after kill -9, and history tells how it came to be', {
  timeout: 120_000,
}, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-crash-'));
  t.after(() => rm(folder, { recursive: true }));
  const acknowledged: Acknowledged = { values: new Map(), revision: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    await writeUntilKilled(folder, 1 + Math.floor(Math.random() * MAX_ACKS), acknowledged);
    const store = await openEmbeddedStore({ folder });
    try {
      await checkAcknowledged(store, acknowledged);
      await checkHistory(store);
    } finally {
      await store.close();
    }
  }
});

async function writeUntilKilled(folder: string, acks: number, acknowledged: Acknowledged): Promise<void> {
  const child = spawn(process.execPath, [WRITER, folder], { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  const before = acknowledged.revision;
  let left = acks;
  // Lines that were written before the kill arrive after it, and count.
  for await (const line of createInterface({ input: child.stdout })) {
    const [key, value, revision] = line.split(' ');
    if (key === undefined || revision === undefined) continue; // a line that the kill cut off
    assert.ok(Number(revision) > before, `revision ${revision} was given out before ${before}`);
    acknowledged.values.set(key, Math.max(Number(value), acknowledged.values.get(key) ?? 0));
    acknowledged.revision = Math.max(Number(revision), acknowledged.revision);
    left -= 1;
    if (left === 0) child.kill('SIGKILL');
  }
  assert.deepEqual(await exited, [null, 'SIGKILL']);
}

async function checkAcknowledged(store: Store, { values, revision }: Acknowledged): Promise<void> {
  assert.ok((await store.status()).revision >= revision);
  for (const [key, value] of values) {
    const left = await store.get(`left/${key}`);
    const right = await store.get(`right/${key}`);
    assert.deepEqual(
      [right?.value, right?.modRevision],
      [left?.value, left?.modRevision],
      'half of a transaction',
    );
    // One more than was acknowledged may have been on its way.
    assert.ok(
      [value, value + 1].includes(Number(left?.value)),
      `${key} is ${left?.value}, acknowledged was ${value}`,
    );
  }
}

async function checkHistory(store: Store): Promise<void> {
  const { revision, items } = await store.range({ prefix: '' });
  const replayed = new Map<string, KeyValue>();
  const batches = await collect(store, { prefix: '', fromRevision: 1 }, revision);
  assert.deepEqual(
    batches.map((batch) => batch.revision),
    Array.from({ length: revision }, (_, n) => n + 1),
  );
  for (const event of batches.flatMap(({ events }) => events)) {
    if (event.type === 'delete') replayed.delete(event.key);
    else {
      const { type: _, ...item } = event;
      replayed.set(event.key, item);
    }
  }
  assert.deepEqual(
    [...replayed.values()].sort((a, b) => (a.key < b.key ? -1 : 1)),
    items,
  );
}
