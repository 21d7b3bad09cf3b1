// A disk that takes no more. The limit on the size of files stands in for it: the kernel refuses the write alike.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { runUnchecked } from '@cloister/kit/program.ts';
import { openEmbeddedStore } from './embedded.ts';

const FILE_BYTES = 8 * 1_048_576;

const WRITER = `
  process.on('SIGXFSZ', () => {});
  const { openEmbeddedStore } = await import(process.argv[1]);
  const store = await openEmbeddedStore({ folder: process.argv[2] });
  let n = 0;
  try {
    for (; n < 1000; n++) await store.txn({ then: [{ type: 'put', key: 'k' + n, value: 'v'.repeat(50_000) }] });
  } catch (error) {
    console.log(JSON.stringify({ n, code: error.code, cause: String(error.cause) }));
  }
  process.exit(0);
`;

test('a write that the disk refuses is refused, and what was acknowledged before stays', {
  timeout: 60_000,
}, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-full-'));
  t.after(() => rm(folder, { recursive: true }));
  const args = [
    `--fsize=${FILE_BYTES}`,
    process.execPath,
    '--input-type=module',
    '--eval',
    WRITER,
    join(import.meta.dirname, 'embedded.ts'),
    folder,
  ];
  const { stdout, stderr } = await runUnchecked('prlimit', args, { timeoutMs: 30_000 });
  assert.notEqual(stdout, '', stderr);
  const { n, code } = JSON.parse(stdout);
  assert.ok(n > 10 && n < 1000);
  assert.equal(code, 'unavailable');
  const store = await openEmbeddedStore({ folder });
  const { items, revision } = await store.range({ prefix: '' });
  assert.ok(items.length >= n && revision === items.length);
  await store.txn({ then: [{ type: 'put', key: 'again', value: '1' }] });
  await store.close();
});
