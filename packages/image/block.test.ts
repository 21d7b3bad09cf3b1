// What the program that builds a block image may do: it reads a tree that an image's author made up.
import assert from 'node:assert/strict';
import { readdir, readFile, stat } from 'node:fs/promises';
import { test } from 'node:test';
import { systemClock } from '@cloister/kit/clock.ts';
import { poll } from '@cloister/kit/wait.ts';
import { FakeRegistry } from './fakeRegistry.ts';
import { buildImage } from './testImage.ts';
import { TestNode } from './testNode.ts';

test('a block image is built by a user that owns nothing else and can only read more than others, without a network; then it is ours', async () => {
  await using node = await TestNode.start();
  await using fake = node.trust(await FakeRegistry.start());
  const store = await node.store();
  const secret = { path: 'secret', mode: 0o000, content: 'read all the same' };
  const large = { path: 'large', content: Buffer.alloc(300_000_000) };
  const reference = fake.serve(buildImage({ files: [secret, large], compression: 'zstd' }));
  const pull = store.pull(reference);
  pull.catch(() => {}); // awaited below; the assertions between may end the test first
  const { status, interfaces } = await poll(async () => await lookAtBuilder(node.folder), {
    clock: systemClock,
    everyMs: 5,
    timeoutMs: 30_000,
    makeError: () => new Error('nobody builds'),
  });
  const field = (name: string): string =>
    new RegExp(`^${name}:[\\t ]*(.*)$`, 'm').exec(status)?.[1]?.trim() ?? '';
  const DAC_READ_SEARCH = 1 << 2;
  for (const ids of ['Uid', 'Gid']) assert.match(field(ids), /^(9\d{8})(\s\1){3}$/);
  assert.equal(field('Groups'), '');
  for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
    assert.equal(Number.parseInt(field(set), 16), DAC_READ_SEARCH, set);
  assert.equal(field('NoNewPrivs'), '1');
  assert.deepEqual(interfaces, ['lo']);
  const { uid, gid, mode } = await stat((await pull).blockPath);
  assert.deepEqual([uid, gid, mode & 0o777], [0, 0, 0o644]);
});

/** The mkfs.erofs that writes below `folder`, as /proc has it. */
async function lookAtBuilder(folder: string): Promise<{ status: string; interfaces: string[] } | undefined> {
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const read = async (name: string): Promise<string> =>
      await readFile(`/proc/${pid}/${name}`, 'utf8').catch(() => '');
    const [program, ...args] = (await read('cmdline')).split('\0');
    if (program !== 'mkfs.erofs' || !args.some((arg) => arg.startsWith(folder))) continue;
    const interfaces = [...(await read('net/dev')).matchAll(/^\s*(\S+):/gm)].map(([, name]) => name ?? '');
    return { status: await read('status'), interfaces };
  }
  return undefined;
}
