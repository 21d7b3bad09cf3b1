// Scratch disks: their size, their owner, and full disks.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { LIMITS } from '@cloister/model/job.ts';
import { createScratch } from './scratch.ts';

let folder: string;
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'scratch-test-'));
});
after(() => rmSync(folder, { recursive: true }));

test('a scratch disk is as large as asked, takes next to nothing, and is its owner’s alone', async () => {
  for (const sizeMiB of [LIMITS.diskMiB.min, 1024, 20_480]) {
    const path = join(folder, `${sizeMiB}`);
    await createScratch({ path, sizeMiB, uid: 1_700_001, reserveMiB: 0 });
    const { size, blocks, uid, gid, mode } = statSync(path);
    assert.equal(size, sizeMiB * 1_048_576);
    assert.ok(blocks * 512 < 1_048_576, `${blocks * 512} bytes are taken by ${sizeMiB} MiB`);
    assert.deepEqual({ uid, gid, mode: mode & 0o777 }, { uid: 1_700_001, gid: 1_700_001, mode: 0o600 });
  }
});

test('a scratch disk is a clean ext4 without a journal, whose tables the guest need not write', async () => {
  const path = join(folder, 'clean');
  await createScratch({ path, sizeMiB: 256, uid: 0, reserveMiB: 0 });
  execFileSync('e2fsck', ['-fn', path], { stdio: 'pipe' });
  const dump = execFileSync('dumpe2fs', [path], { encoding: 'utf8', stdio: 'pipe' });
  assert.doesNotMatch(dump, /has_journal/);
  assert.equal(dump.match(/^Group \d+/gm)?.length, dump.match(/ITABLE_ZEROED/g)?.length);
});

test('a scratch disk that does not fit is refused before anything is made', async () => {
  const { bavail, bsize } = await statfs(folder);
  const freeMiB = Math.floor((bavail * bsize) / 1_048_576);
  const path = join(folder, 'too-large');
  await assert.rejects(createScratch({ path, sizeMiB: 1024, uid: 0, reserveMiB: freeMiB }), {
    code: 'node.disk-full',
  });
  await assert.rejects(createScratch({ path, sizeMiB: 2 * freeMiB, uid: 0, reserveMiB: 0 }), {
    code: 'node.disk-full',
  });
  assert.equal(existsSync(path), false);
});

test('what is there already is not touched', async () => {
  const path = join(folder, 'there');
  writeFileSync(path, 'mine');
  await assert.rejects(createScratch({ path, sizeMiB: 64, uid: 0, reserveMiB: 0 }), { code: 'EEXIST' });
  assert.equal(statSync(path).size, 4);
});
