// A disk that fills up: a small tmpfs under the store's folder, or under containerd's.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, open, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { run } from '@cloister/kit/program.ts';
import { FakeRegistry } from './fakeRegistry.ts';
import { buildImage } from './testImage.ts';
import { TestNode } from './testNode.ts';

const TIMEOUT = { timeoutMs: 10_000 };
const incompressible = buildImage({ files: [{ path: 'a', content: randomBytes(6_000_000) }] });
const compressible = buildImage({
  files: [{ path: 'a', content: Buffer.alloc(60_000_000) }],
  compression: 'zstd',
});
const small = buildImage({ files: [{ path: 'a', content: 'small' }] });

async function smallDisk(t: TestContext, sizeMiB: number): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-disk-'));
  await run('mount', ['-t', 'tmpfs', '-o', `size=${sizeMiB}m`, 'small', folder], TIMEOUT);
  t.after(async () => {
    await run('umount', [folder], TIMEOUT);
    await rm(folder, { recursive: true });
  });
  return folder;
}

test('when the block image finds no room, nothing is left, and a smaller image still goes', async (t) => {
  const folder = await smallDisk(t, 8);
  await using node = await TestNode.start();
  const store = await node.store({ folder });
  await using fake = node.trust(await FakeRegistry.start());
  await assert.rejects(store.pull(fake.serve(compressible)), { code: 'node.disk-full' });
  await node.assertNothingLeft(folder);
  await store.pull(fake.serve(small));
  await store.close();
});

test('when containerd finds no room for a layer, or for what it unpacks to, nothing is left', async (t) => {
  const disk = await smallDisk(t, 4);
  const root = join(disk, 'containerd');
  await mkdir(root);
  await using node = await TestNode.start(root);
  const folder = join(node.folder, 'store');
  const store = await node.store({
    folder,
    minFreeBytes: -100_000_000,
  });
  await using fake = node.trust(await FakeRegistry.start());
  for (const image of [incompressible, compressible]) {
    await assert.rejects(store.pull(fake.serve(image)), { code: 'node.disk-full' });
    await node.assertNothingLeft(folder);
  }
  assert.equal((await store.pull(fake.serve(small))).digest, small.manifest.digest);
});

test('a disk that somebody else keeps full does not keep containerd from deleting', async (t) => {
  const disk = await smallDisk(t, 6);
  const root = join(disk, 'containerd');
  await mkdir(root);
  await using node = await TestNode.start(root);
  const folder = join(node.folder, 'store');
  const store = await node.store({ folder, minFreeBytes: -100_000_000 });
  await using fake = node.trust(await FakeRegistry.start());
  const greedy = await open(join(disk, 'greedy'), 'w');
  const page = Buffer.alloc(4096);
  const timer = setInterval(() => {
    greedy.write(page).catch(() => {}); // full, which is the idea
  }, 2);
  await assert.rejects(store.pull(fake.serve(compressible)), { code: 'node.disk-full' });
  clearInterval(timer);
  await greedy.close();
  const snapshots = join(node.containerd.rootFolder, 'io.containerd.snapshotter.v1.overlayfs', 'snapshots');
  assert.deepEqual(await readdir(snapshots), []);
  await node.assertNothingLeft(folder);
});

test('a pull for which there is not enough room to begin with fetches no layer', async (t) => {
  const folder = await smallDisk(t, 8);
  await using node = await TestNode.start();
  const store = await node.store({ folder, minFreeBytes: 4_000_000 });
  await using fake = node.trust(await FakeRegistry.start());
  const reference = fake.serve(incompressible);
  await assert.rejects(store.pull(reference), { code: 'node.disk-full', message: /no room for the layers/ });
  assert.ok(!fake.requests.some(({ url }) => url?.endsWith(incompressible.layers[0]!.digest)));
  await node.assertNothingLeft(folder);
  await store.close();
});
