// The store's promises: once a digest, no network for what is there, durable over restarts, nothing half made, and
// nothing dropped that is used.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdir, readdir, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ManualClock } from '@cloister/kit/clock.ts';
import { FakeRegistry } from './fakeRegistry.ts';
import { ImageStore } from './images.ts';
import type { ProgressStep } from './pull.ts';
import { buildBusyboxImage, buildImage, buildIndex } from './testImage.ts';
import { OpenBlock, TestNode } from './testNode.ts';
import { TestRegistry } from './testRegistry.ts';

let node: TestNode;
let registry: TestRegistry;

before(async () => {
  [node, registry] = await Promise.all([TestNode.start(), TestRegistry.start()]);
  node.trust(registry);
});
after(async () => {
  await registry[Symbol.asyncDispose]();
  await node[Symbol.asyncDispose]();
});

const image = (content: string | Buffer) => buildImage({ files: [{ path: 'file', content }] });

test('an image is pulled, with its configuration and its progress, and can be opened', async () => {
  const store = await node.store();
  const config = {
    Entrypoint: ['/bin/sh', '-c'],
    Cmd: ['id'],
    Env: ['PATH=/bin', 'A=b=c', 'broken'],
    User: 'nobody',
    WorkingDir: '/tmp',
    StopSignal: 'SIGINT',
    Volumes: { '/data': {}, '/a': {} },
    Unknown: { x: 1 },
  };
  const busybox = buildBusyboxImage({ config });
  const reference = await registry.pushImage(busybox, 'team/busybox', 'v1');
  const steps: ProgressStep[] = [];
  const pulled = await store.pull(reference, { onProgress: (step) => steps.push(step) });
  assert.equal(pulled.reference, reference);
  assert.equal(pulled.digest, busybox.manifest.digest);
  assert.equal(pulled.sizeBytes, busybox.layers[0]!.bytes.length);
  assert.equal(pulled.blockBytes, (await stat(pulled.blockPath)).size);
  assert.deepEqual(pulled.config, {
    entrypoint: ['/bin/sh', '-c'],
    cmd: ['id'],
    env: ['PATH=/bin', 'A=b=c'],
    user: 'nobody',
    workingDir: '/tmp',
    stopSignal: 'SIGINT',
    volumes: ['/a', '/data'],
  });
  const stages = [...new Set(steps.map(({ stage }) => stage))];
  assert.deepEqual(stages, ['resolving', 'fetching', 'unpacking', 'building', 'done']);
  assert.deepEqual(steps.at(-1), {
    stage: 'done',
    fetchedBytes: pulled.sizeBytes,
    totalBytes: pulled.sizeBytes,
  });
  await using block = await OpenBlock.open(pulled.blockPath);
  assert.equal((await block.list('%y %m')).get('/bin/busybox'), 'f 755');
  const held = await node.held();
  assert.deepEqual([held.snapshots, held.ingestions], [[], []]);
  await store.remove(reference);
});

test('what is on the node is used without the network, by tag and by digest; refresh asks the registry', async () => {
  const store = await node.store();
  await using fake = node.trust(await FakeRegistry.start());
  const [first, second] = [image('first'), image('second')];
  const reference = fake.serve(first);
  await store.pull(reference);
  const byDigest = `${fake.host}/fake/image@${first.manifest.digest}`;
  await store.pull(byDigest);
  const asked = fake.requests.length;
  assert.equal((await store.pull(reference)).digest, first.manifest.digest);
  assert.equal((await store.pull(byDigest)).digest, first.manifest.digest);
  assert.equal(fake.requests.length, asked);
  fake.serve(second);
  assert.equal((await store.pull(reference, { refresh: true })).digest, second.manifest.digest);
  assert.equal((await store.pull(reference)).digest, second.manifest.digest);
  assert.deepEqual(
    store.list().map(({ reference: name, digest }) => [name, digest]),
    [
      [byDigest, first.manifest.digest],
      [reference, second.manifest.digest],
    ],
  );
  for (const name of [reference, byDigest]) await store.remove(name);
});

test('an index gives the image for the platform', async () => {
  const store = await node.store({ platform: { os: 'linux', architecture: 'arm', variant: 'v7' } });
  await using fake = node.trust(await FakeRegistry.start());
  const build = (variant: string) =>
    buildImage({ files: [{ path: variant }], platform: { os: 'linux', architecture: 'arm', variant } });
  const [v6, v7] = [build('v6'), build('v7')];
  for (const each of [v6, v7]) fake.serve(each);
  const index = buildIndex([
    { image: v6, platform: { os: 'linux', architecture: 'arm', variant: 'v6' } },
    { image: v7, platform: { os: 'linux', architecture: 'arm', variant: 'v7' } },
  ]);
  fake.servePart(index);
  const pulled = await store.pull(`${fake.host}/fake/image@${index.digest}`);
  assert.equal(pulled.digest, v7.manifest.digest);
  await store.remove(pulled.reference);
});

test('concurrent pulls of one image fetch and build it once, under two names too', async () => {
  const store = await node.store();
  await using fake = node.trust(await FakeRegistry.start());
  const made = image(randomBytes(500_000));
  const reference = fake.serve(made);
  fake.serve(made, 'also');
  const names = [reference, reference, reference, `${fake.host}/fake/image:also`];
  const pulled = await Promise.all(names.map(async (name) => await store.pull(name)));
  assert.deepEqual(new Set(pulled.map(({ digest }) => digest)), new Set([made.manifest.digest]));
  assert.equal(
    fake.requests.filter(({ url, method }) => method === 'GET' && url?.endsWith(made.layers[0]!.digest))
      .length,
    1,
  );
  assert.deepEqual(
    [...new Set(pulled.map(({ reference: name }) => name))].sort(),
    [...new Set(names)].sort(),
  );
  for (const name of new Set(names)) await store.remove(name);
});

test("one tenant's pulls that never end do not hold up another's, not even of the same image", async () => {
  const store = await node.store({ maxPulls: 4 });
  await using stuck = node.trust(await FakeRegistry.start());
  await using fake = node.trust(await FakeRegistry.start());
  stuck.handler = () => true; // and never answers
  const [mine, wanted] = [image('mine'), image('wanted')];
  const references = [fake.serve(mine, 'mine'), fake.serve(wanted, 'wanted')] as const;
  const stop = new AbortController();
  const greedy = { group: 'greedy', signal: stop.signal };
  const blocked = ['a', 'b', 'c', 'd', 'e'].map((name) => store.pull(`${stuck.host}/${name}`, greedy));
  const waiting = store.pull(references[1], greedy); // behind those
  const settled = Promise.allSettled([...blocked, waiting]);
  for (const [at, made] of [mine, wanted].entries())
    assert.equal((await store.pull(references[at]!, { group: 'modest' })).digest, made.manifest.digest);
  stop.abort(new Error('enough'));
  assert.deepEqual(new Set((await settled).map(({ status }) => status)), new Set(['rejected']));
  for (const reference of references) await store.remove(reference);
});

test('a cancelled pull leaves nothing, and rejects with the reason', async () => {
  const folder = join(node.folder, 'cancelled');
  const store = await node.store({ folder });
  await using fake = node.trust(await FakeRegistry.start());
  const made = image(randomBytes(2_000_000));
  const reference = fake.serve(made);
  const begun = Promise.withResolvers<void>();
  fake.handler = (request, response, part) => {
    if (!part || part !== made.layers[0] || !request.url?.includes('/blobs/')) return false;
    response.writeHead(200);
    response.write(part.bytes.subarray(0, 1_000_000)); // and then nothing
    return true;
  };
  const controller = new AbortController();
  const onProgress = ({ fetchedBytes }: ProgressStep): void => {
    if (fetchedBytes > 0) begun.resolve();
  };
  const pull = store.pull(reference, { signal: controller.signal, onProgress });
  pull.catch(() => {});
  await begun.promise;
  const reason = new Error('not wanted any more');
  controller.abort(reason);
  await assert.rejects(pull, reason);
  await node.assertNothingLeft(folder);
});

test('a pull that one caller cancels goes on for another', async () => {
  const store = await node.store();
  await using fake = node.trust(await FakeRegistry.start());
  const reference = fake.serve(image('shared'));
  const controller = new AbortController();
  const cancelled = store.pull(reference, { signal: controller.signal });
  const wanted = store.pull(reference);
  controller.abort(new Error('mine'));
  await assert.rejects(cancelled, { message: 'mine' });
  assert.equal((await wanted).reference, reference);
  await store.remove(reference);
});

test('images are there after a restart, and what a crash left is not', async () => {
  const folder = join(node.folder, 'restarted');
  const store = await node.store({ folder });
  const kept = await registry.pushImage(image('kept'), 'team/kept');
  const torn = await registry.pushImage(image('torn'), 'team/torn');
  const before = await store.pull(kept);
  const broken = await store.pull(torn);
  await store.close();
  await truncate(broken.blockPath, 10);
  await writeFile(join(folder, 'images', `${'0'.repeat(64)}.erofs`), 'without a record');
  await writeFile(join(folder, 'images', `${'1'.repeat(64)}.json`), '{"digest":');
  await mkdir(join(folder, 'work', 'half', 'tree'), { recursive: true });
  const again = await node.store({ folder });
  assert.deepEqual(again.list(), [before]);
  assert.equal((await readdir(join(folder, 'images'))).length, 2);
  assert.deepEqual(await readdir(join(folder, 'work')), []);
  assert.equal((await node.held()).leases.length, 1);
  await again.pull(torn);
  for (const reference of [kept, torn]) await again.remove(reference);
  await node.assertNothingLeft(folder);
});

test('what is used is not dropped; the rest goes by age and by size, the least recently used first', async () => {
  const clock = new ManualClock();
  const store = await node.store({ clock });
  const references: string[] = [];
  for (const name of ['a', 'b', 'c', 'd']) {
    references.push(
      await registry.pushImage(image(`${name}${randomBytes(50_000).toString('hex')}`), `team/${name}`),
    );
    await store.pull(references.at(-1)!);
    await clock.advance(100_000);
  }
  const left = (): string[] => store.list().map(({ reference }) => reference.split('/').at(-1)!.slice(0, 1));
  const use = store.use(store.list()[0]!.digest); // the oldest, "a"
  assert.deepEqual(await store.collect({ keepMs: 1e9, maxBytes: 1e12 }), []);
  assert.equal((await store.collect({ keepMs: 250_000, maxBytes: 1e12 })).length, 1);
  assert.deepEqual(left(), ['a', 'c', 'd']);
  await store.collect({ keepMs: 1e9, maxBytes: 400_000 });
  assert.deepEqual(left(), ['a', 'd']);
  await assert.rejects(store.remove(references[0]!), { code: 'state.wrong' });
  use.release();
  use.release();
  await clock.advance(100_000);
  await store.collect({ keepMs: 0, maxBytes: 0 });
  assert.deepEqual(left(), []);
  assert.throws(() => store.use(`sha256:${'0'.repeat(64)}`), { code: 'image.not-found' });
  assert.deepEqual((await node.held()).content, []);
});

test('what an agent that was killed left of a pull is gone on with, or dropped in the end', async () => {
  const clock = new ManualClock();
  const folder = join(node.folder, 'abandoned');
  const store = await node.store({ folder, clock });
  const { ContainerdClient } = await import('./containerd.ts');
  const client = new ContainerdClient(node.containerd.socketPath);
  await client.createLease('pull-dead');
  const part = client.ingest('dead@x', `sha256:${'1'.repeat(64)}`, 10, { lease: 'pull-dead' });
  await part.begin();
  await part.write(0, Buffer.from('12345'));
  part.close();
  await store.collect({ keepMs: 1, maxBytes: 1 });
  assert.equal((await node.held()).ingestions.length, 1);
  await clock.advance(2 * 3_600_000);
  await store.collect({ keepMs: 1, maxBytes: 1 });
  client.close();
  await node.assertNothingLeft(folder);
});

test('a store whose containerd is not there says so', async () => {
  const folder = join(node.folder, 'nowhere');
  const containerd = { socketPath: join(folder, 'none.sock'), rootFolder: folder };
  await assert.rejects(ImageStore.open({ folder, containerd }), { code: 'unavailable' });
  await rm(folder, { recursive: true });
});
