// The line of writes, on real tables.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { CloisterError } from '@cloister/model/errors.ts';
import { GroupCommit } from './groupCommit.ts';
import { openTables, readMeta, type Tables, transact } from './tables.ts';

interface Line {
  readonly tables: Tables;
  readonly writes: GroupCommit;
  readonly commits: () => number;
}

async function openLine(t: TestContext): Promise<Line> {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-group-'));
  const tables = await openTables(folder);
  let commits = 0;
  const count = (): void => {
    commits += 1;
  };
  const writes = new GroupCommit(
    (body) => transact(tables, body),
    () => {},
    count,
  );
  t.after(async () => {
    await writes.close();
    await tables.root.close();
    await rm(folder, { recursive: true });
  });
  return { tables, writes, commits: () => commits };
}

test('what is submitted in one turn shares one commit', async (t) => {
  const { tables, writes, commits } = await openLine(t);
  await Promise.all(
    Array.from({ length: 100 }, (_, n) => writes.submit(1, () => tables.leases.putSync(`l${n}`, n))),
  );
  assert.equal(commits(), 1);
  assert.equal(tables.leases.getCount(), 100);
});

test("a refusal is its caller's alone", async (t) => {
  const { tables, writes } = await openLine(t);
  const results = await Promise.allSettled([
    writes.submit(1, () => tables.meta.putSync('revision', 7)),
    writes.submit(1, () => {
      throw new CloisterError('not-found', 'No such lease.');
    }),
    writes.submit(1, () => readMeta(tables, 'revision')),
  ]);
  assert.deepEqual(
    results.map((result) => (result.status === 'fulfilled' ? result.value : result.reason.code)),
    [true, 'not-found', 7],
  );
});

test('a failure undoes all that shared its commit, and later writes go on', async (t) => {
  const { tables, writes } = await openLine(t);
  const failure = new Error('the disk is gone');
  const results = await Promise.allSettled([
    writes.submit(1, () => tables.meta.putSync('revision', 7)),
    writes.submit(1, () => {
      throw failure;
    }),
  ]);
  for (const result of results) {
    assert.ok(
      result.status === 'rejected' && result.reason.code === 'unavailable' && result.reason.cause === failure,
    );
  }
  assert.equal(readMeta(tables, 'revision'), 0);
  await writes.submit(1, () => tables.meta.putSync('revision', 1));
  assert.equal(readMeta(tables, 'revision'), 1);
});

test('after close nothing more is taken', async (t) => {
  const { writes } = await openLine(t);
  await writes.close();
  await assert.rejects(
    writes.submit(1, () => 1),
    { code: 'unavailable' },
  );
});
