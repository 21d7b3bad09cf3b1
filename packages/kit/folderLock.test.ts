// Locks of folders: against this process, against others, and what is no lock at all.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { lockFolder } from './folderLock.ts';

async function makeFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-lock-'));
  t.after(() => rm(folder, { recursive: true }));
  return folder;
}

test('a folder that is locked is refused until it is released', async (t) => {
  const folder = await makeFolder(t);
  const lock = lockFolder(folder, 'taken');
  assert.throws(() => lockFolder(folder, 'taken'), { code: 'folder.locked', message: 'taken' });
  lock.release();
  lockFolder(folder, 'taken').release();
});

test('a process that is killed leaves no lock behind', { timeout: 30_000 }, async (t) => {
  const folder = await makeFolder(t);
  const script = `
    const { lockFolder } = await import(${JSON.stringify(join(import.meta.dirname, 'folderLock.ts'))});
    lockFolder(${JSON.stringify(folder)}, 'taken');
    console.log('locked');
    setInterval(() => {}, 1000);`;
  const holder = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => holder.kill('SIGKILL'));
  await once(holder.stdout, 'data');
  assert.throws(() => lockFolder(folder, 'taken'), { code: 'folder.locked' });
  const ended = once(holder, 'exit');
  holder.kill('SIGKILL');
  await ended;
  lockFolder(folder, 'taken').release();
});

test('a folder that cannot be locked is not said to be in use', async (t) => {
  const folder = await makeFolder(t);
  const nowhere = join(folder, 'nowhere');
  const message = (path: string): string => `Could not lock the folder ${path}`;
  assert.throws(() => lockFolder(nowhere, 'taken'), { message: message(nowhere) });
  await writeFile(join(folder, 'owner.lock'), 'not a database '.repeat(100));
  assert.throws(() => lockFolder(folder, 'taken'), { message: message(folder) });
});
