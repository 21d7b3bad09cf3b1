// What an image's layers say is what its block image has, down to the odd things; and what hostile layers say stays
// inside.
import assert from 'node:assert/strict';
import { lstat, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { FakeRegistry } from './fakeRegistry.ts';
import type { ImageStore } from './images.ts';
import type { TarEntry } from './tar.ts';
import { buildImage, type ImageRecipe } from './testImage.ts';
import { OpenBlock, TestNode } from './testNode.ts';

let node: TestNode;
let store: ImageStore;

before(async () => {
  node = await TestNode.start();
  store = await node.store();
});
after(async () => await node[Symbol.asyncDispose]());

async function pullBlock(recipe: ImageRecipe): Promise<OpenBlock> {
  await using fake = node.trust(await FakeRegistry.start());
  return await OpenBlock.open((await store.pull(fake.serve(buildImage(recipe)))).blockPath);
}

/** VFS_CAP_REVISION_2 with CAP_NET_RAW, effective. */
const CAPABILITY = '\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00';
const NOT_UTF8 = Buffer.from([0x62, 0x61, 0x64, 0xff, 0xfe]);
const ODD: TarEntry[] = [
  { path: 'bin', type: 'folder' },
  { path: 'bin/su', mode: 0o4755, content: 'su' },
  { path: 'bin/wall', mode: 0o2755, gid: 5, content: 'wall' },
  {
    path: 'bin/ping',
    mode: 0o755,
    content: 'ping',
    xattrs: { 'security.capability': CAPABILITY, 'user.note': 'hello' },
  },
  { path: 'tmp', type: 'folder', mode: 0o1777 },
  { path: 'one', content: 'linked', uid: 1000, gid: 70_000 },
  { path: 'two', type: 'hardlink', target: 'one', uid: 1000, gid: 70_000 },
  { path: 'far', type: 'symlink', target: '/etc/../one' },
  { path: 'dangling', type: 'symlink', target: '/nowhere' },
  { path: 'null', type: 'character', mode: 0o666, device: { major: 1, minor: 3 } },
  { path: 'disk', type: 'block', mode: 0o660, device: { major: 8, minor: 17 } },
  { path: 'pipe', type: 'fifo', mode: 0o600 },
  { path: 'new\nline "quoted" \\ back', content: 'n' },
  { path: NOT_UTF8, content: 'b' },
  { path: `long/${'n'.repeat(250)}`, content: 'l', mtimeSeconds: 86_400 },
  { path: 'big-uid', uid: 4_000_000_000, gid: 4_000_000_001 },
  { path: 'empty' },
  { path: 'large', content: Buffer.alloc(3_000_000, 'x') },
];

for (const layers of [[ODD], [[{ path: 'below' }], ODD]]) {
  test(`modes, owners, links, devices, attributes and odd names are kept with ${layers.length} layers`, async () => {
    await using block = await pullBlock({ layers });
    const types = await block.list('%y %m %U %G');
    assert.equal(types.get('/bin/su'), 'f 4755 0 0');
    assert.equal(types.get('/bin/wall'), 'f 2755 0 5');
    assert.equal(types.get('/tmp'), 'd 1777 0 0');
    assert.equal(types.get('/one'), 'f 644 1000 70000');
    assert.equal(types.get('/null'), 'c 666 0 0');
    assert.equal(types.get('/disk'), 'b 660 0 0');
    assert.equal(types.get('/pipe'), 'p 600 0 0');
    assert.equal(types.get('/big-uid'), 'f 644 4000000000 4000000001');
    assert.ok(types.has('/new\nline "quoted" \\ back'));
    assert.ok(types.has(`/${NOT_UTF8.toString()}`));
    const links = await block.list('%n %i %l');
    assert.match(links.get('/one')!, /^2 /);
    assert.equal(links.get('/one'), links.get('/two'));
    assert.match(links.get('/far')!, / \/etc\/\.\.\/one$/);
    assert.match(links.get('/dangling')!, / \/nowhere$/);
    const times = await block.list('%T@ %s');
    assert.equal(times.get(`/long/${'n'.repeat(250)}`), '86400.0000000000 1');
    assert.match(times.get('/large')!, / 3000000$/);
    assert.equal(await block.run('stat', ['--format=%t:%T', block.path('disk')]), '8:11\n');
    assert.equal(await block.xattr('bin/ping', 'security.capability'), CAPABILITY);
    assert.equal(await block.xattr('bin/ping', 'user.note'), 'hello');
  });
}

for (const compression of ['none', 'gzip', 'zstd'] as const) {
  for (const format of ['oci', 'docker'] as const) {
    test(`layers on layers: files replaced, whited out, and folders made opaque (${format}, ${compression})`, async () => {
      const below: TarEntry[] = [
        { path: 'etc', type: 'folder' },
        { path: 'etc/kept', content: '1' },
        { path: 'etc/replaced', content: 'old' },
        { path: 'etc/removed' },
        { path: 'opaque', type: 'folder' },
        { path: 'opaque/hidden' },
        { path: 'gone', type: 'folder' },
        { path: 'gone/inside' },
      ];
      const above: TarEntry[] = [
        { path: 'etc/replaced', content: 'new' },
        { path: 'etc/.wh.removed' },
        { path: 'opaque/.wh..wh..opq' },
        { path: 'opaque/fresh' },
        { path: '.wh.gone' },
      ];
      await using block = await pullBlock({ layers: [below, above], compression, format });
      const names = [...(await block.list('')).keys()].sort();
      assert.deepEqual(names, ['/etc', '/etc/kept', '/etc/replaced', '/opaque', '/opaque/fresh']);
      assert.equal(await block.read('etc/replaced'), 'new');
    });
  }
}

test('a whiteout of what was never there is no file', async () => {
  const layers: TarEntry[][] = [
    [{ path: 'a' }, { path: 'was-file' }],
    [
      { path: 'fresh', type: 'folder' },
      { path: 'fresh/.wh.never "there"' },
      { path: 'fresh/file' },
      { path: 'was-file', type: 'folder' },
      { path: 'was-file/.wh.x' },
      { path: '.wh.nor-this' },
    ],
  ];
  await using block = await pullBlock({ layers });
  assert.deepEqual([...(await block.list('')).keys()].sort(), ['/a', '/fresh', '/fresh/file', '/was-file']);
});

test('127 layers become one block image', { timeout: 120_000 }, async () => {
  const layers = Array.from({ length: 127 }, (_, at): TarEntry[] => [
    { path: `layer-${at}`, content: String(at) },
  ]);
  await using block = await pullBlock({ layers });
  assert.equal((await block.list('')).size, 127);
  assert.equal(await block.read('layer-126'), '126');
});

test('an image without layers is an empty block image', async () => {
  await using block = await pullBlock({ layers: [] });
  assert.equal((await block.list('')).size, 0);
});

test('layers that reach out write inside their own root, or are refused', async () => {
  const canary = join(node.folder, 'canary');
  await writeFile(canary, 'untouched');
  const up = '../'.repeat(20);
  const attacks: Record<string, TarEntry[][]> = {
    'a path with ..': [[{ path: `${up}${canary}`, content: 'x' }]],
    'an absolute path': [[{ path: canary, content: 'x' }]],
    'a file through an absolute symlink': [
      [
        { path: 'out', type: 'symlink', target: node.folder },
        { path: 'out/canary', content: 'x' },
      ],
    ],
    'a file through a relative symlink': [
      [
        { path: 'out', type: 'symlink', target: `${up}${node.folder}` },
        { path: 'out/canary', content: 'x' },
      ],
    ],
    'a file through a symlink of the layer below': [
      [{ path: 'out', type: 'symlink', target: node.folder }],
      [{ path: 'out/canary', content: 'x' }],
    ],
    'a file over a symlink': [
      [{ path: 'out', type: 'symlink', target: canary }],
      [{ path: 'out', content: 'x' }],
    ],
    'a hard link to a file outside': [
      [
        { path: 'out', type: 'hardlink', target: canary },
        { path: 'out', content: 'x' },
      ],
    ],
    'a hard link with ..': [[{ path: 'out', type: 'hardlink', target: `${up}${canary}` }]],
    'a whiteout of a file outside': [[{ path: `${up}${node.folder}/.wh.canary` }]],
    'a whiteout through a symlink': [
      [{ path: 'out', type: 'symlink', target: node.folder }],
      [{ path: 'out/.wh.canary' }],
    ],
    'an opaque folder through a symlink': [
      [{ path: 'out', type: 'symlink', target: node.folder }],
      [{ path: 'out/.wh..wh..opq' }],
    ],
    'an overlay redirect': [
      [{ path: 'd', type: 'folder', xattrs: { 'trusted.overlay.redirect': node.folder } }],
      [{ path: 'd/x' }],
    ],
  };
  for (const [name, layers] of Object.entries(attacks)) {
    await pullBlock({ layers }).then(
      async (block) => {
        await using opened = block;
        const size = (await opened.list('%y %s')).get('/out');
        assert.notEqual(size, 'f 9', name); // the canary's content
      },
      (error: unknown) =>
        assert.equal((error as { code?: string }).code, 'image.unsupported', `${name}: ${error}`),
    );
    assert.equal(await readFile(canary, 'utf8'), 'untouched', name);
    assert.equal((await lstat(canary)).nlink, 1, name);
  }
});
