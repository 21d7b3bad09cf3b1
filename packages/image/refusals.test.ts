// Every way in which a pull is refused, with its code, in seconds, and with nothing left on the node.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CloisterError, type ErrorCode } from '@cloister/model/errors.ts';
import { FakeRegistry } from './fakeRegistry.ts';
import type { ImageStore } from './images.ts';
import { blob, blobOfJson, buildImage, buildIndex, buildManifest, type TestImage } from './testImage.ts';
import { TestNode } from './testNode.ts';
import { freePort, TestRegistry } from './testRegistry.ts';

const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
const image = buildImage({ files: [{ path: 'a', content: randomBytes(200_000) }] });

let node: TestNode;
let store: ImageStore;
let folder: string;

before(async () => {
  node = await TestNode.start();
  folder = join(node.folder, 'store');
  store = await node.store({ folder, maxImageBytes: 1_048_576, answerTimeoutMs: 1000, idleTimeoutMs: 1000 });
});
after(async () => await node[Symbol.asyncDispose]());

async function refused(reference: string, code: ErrorCode, message: RegExp): Promise<void> {
  await assert.rejects(store.pull(reference), (error) => {
    assert.ok(error instanceof CloisterError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  });
  await node.assertNothingLeft(folder);
}

async function refusedFake(
  make: (fake: FakeRegistry) => string,
  code: ErrorCode,
  message: RegExp,
): Promise<void> {
  await using fake = node.trust(await FakeRegistry.start());
  await refused(make(fake), code, message);
}

test('a name or a tag that the registry does not have is not found', async () => {
  await using registry = node.trust(await TestRegistry.start());
  const reference = await registry.pushImage(image, 'team/app');
  await refused(`${registry.host}/team/none`, 'image.not-found', /is not there/);
  await refused(`${reference.replace('latest', 'v9')}`, 'image.not-found', /v9/);
});

test('a registry that is down is unreachable, within seconds', async () => {
  const startedAt = performance.now();
  const host = `127.0.0.1:${await freePort()}`;
  node.trust({ host });
  await refused(`${host}/team/app`, 'image.registry-unreachable', /ECONNREFUSED/);
  assert.ok(performance.now() - startedAt < 5000);
});

test('a registry that takes the connection and never answers is unreachable, within seconds', async () => {
  const startedAt = performance.now();
  const make = (fake: FakeRegistry): string => {
    fake.handler = () => true;
    return fake.serve(image);
  };
  await refusedFake(make, 'image.registry-unreachable', /no answer within 1000 ms/);
  assert.ok(performance.now() - startedAt < 10_000);
});

test('a registry that only has errors is unreachable', async () => {
  const make = (fake: FakeRegistry): string => {
    fake.handler = (_, response) => {
      response.writeHead(503).end();
      return true;
    };
    return fake.serve(image);
  };
  await refusedFake(make, 'image.registry-unreachable', /503/);
});

test('a layer with other bytes than its digest names is refused', async () => {
  const layer = image.layers[0]!;
  const wrong = Buffer.from(layer.bytes);
  wrong[1000]! ^= 1;
  const make = (fake: FakeRegistry): string => {
    const reference = fake.serve(image);
    fake.servePart({ ...layer, bytes: wrong });
    return reference;
  };
  await refusedFake(make, 'image.digest-mismatch', /other bytes/);
});

test('a layer longer than its manifest says is refused without reading on', async () => {
  const layer = image.layers[0]!;
  const make = (fake: FakeRegistry): string => {
    const reference = fake.serve(image);
    fake.servePart({ ...layer, bytes: Buffer.concat([layer.bytes, Buffer.alloc(10)]) });
    return reference;
  };
  await refusedFake(make, 'image.digest-mismatch', /longer than its manifest says/);
});

test('a manifest, or a configuration, with other bytes than its digest names is refused', async () => {
  const manifest = (fake: FakeRegistry): string => {
    fake.serve(image);
    fake.servePart({ ...image.manifest, bytes: Buffer.from(`${image.manifest.bytes} `) });
    return `${fake.host}/fake/image@${image.manifest.digest}`;
  };
  await refusedFake(manifest, 'image.digest-mismatch', /manifest/);
  const config = (fake: FakeRegistry): string => {
    const reference = fake.serve(image);
    fake.servePart({ ...image.config, bytes: Buffer.from(`${image.config.bytes} `) });
    return reference;
  };
  await refusedFake(config, 'image.digest-mismatch', /configuration/);
});

test('a layer that unpacks to something else than the configuration says is refused', async () => {
  const other = buildImage({ files: [{ path: 'b' }] });
  const mixed: TestImage = {
    ...image,
    config: other.config,
    manifest: buildManifest({ ...image, config: other.config }),
  };
  await refusedFake((fake) => fake.serve(mixed), 'image.digest-mismatch', /unpacks to/);
});

test('an image for other platforms only is refused, naming those that there are', async () => {
  const platform = { os: 'linux', architecture: 's390x' };
  const foreign = buildImage({ files: [], platform });
  await refusedFake((fake) => fake.serve(foreign), 'image.platform-missing', /linux\/s390x/);
  const index = buildIndex([
    { image: foreign, platform },
    { image: foreign, platform: { os: 'linux', architecture: 'arm', variant: 'v7' } },
    { image: foreign, platform: { os: 'unknown', architecture: 'unknown' } },
  ]);
  const make = (fake: FakeRegistry): string => {
    fake.servePart(index, 'latest');
    return `${fake.host}/fake/image`;
  };
  await refusedFake(make, 'image.platform-missing', /platforms: linux\/s390x, linux\/arm\/v7\.$/);
});

test('an image whose manifest says that it is too large is refused before a layer is fetched', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  const large = buildImage({ files: [{ path: 'a', content: randomBytes(1_100_000) }] });
  await refused(fake.serve(large), 'image.too-large', /limit of this node is 1048576/);
  assert.ok(!fake.requests.some(({ url }) => url?.includes('/blobs/')));
});

test('a small layer that unpacks to too much is refused', async () => {
  const zeros = { path: 'a', content: Buffer.alloc(30_000_000) };
  const bomb = buildImage({ files: [zeros], compression: 'zstd' });
  await refusedFake((fake) => fake.serve(bomb), 'image.too-large', /unpacks to more/);
});

test('a block image that outgrows the limit is refused', async () => {
  // A short symlink takes no block of the disk that it is unpacked to, and 64 bytes of the image.
  const names = Array.from({ length: 3000 }, (_, at) => ({
    path: `${at}`,
    type: 'symlink' as const,
    target: 'x',
  }));
  const tight = await node.store({ folder, maxImageBytes: 120_000 });
  await using fake = node.trust(await FakeRegistry.start());
  await assert.rejects(tight.pull(fake.serve(buildImage({ files: names }))), {
    code: 'image.too-large',
    message: /block image/,
  });
  await node.assertNothingLeft(folder);
});

test('a manifest of more than 4 MiB is refused', async () => {
  const long = blob(Buffer.from(`{"schemaVersion":2,"x":"${'x'.repeat(5_000_000)}"}`), OCI_MANIFEST);
  const make = (fake: FakeRegistry): string => {
    fake.servePart(long, 'latest');
    return `${fake.host}/fake/image`;
  };
  await refusedFake(make, 'image.too-large', /longer than 4194304 bytes/);
});

test('what is no container image, or in a format that we do not take, is unsupported', async () => {
  const layer = {
    mediaType: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
    digest: image.config.digest,
    size: 1,
  };
  const config = {
    mediaType: 'application/vnd.oci.image.config.v1+json',
    digest: image.config.digest,
    size: 1,
  };
  const documents: [object, RegExp][] = [
    [{ schemaVersion: 1, name: 'x', fsLayers: [] }, /schema version 1/],
    [{ schemaVersion: 2, mediaType: 'application/vnd.other+json' }, /vnd\.other/],
    [
      {
        schemaVersion: 2,
        mediaType: OCI_MANIFEST,
        config: { ...config, mediaType: 'application/vnd.chart+json' },
        layers: [],
      },
      /chart/,
    ],
    [{ schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: [layer] }, /foreign/],
    [{ schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: 'none' }, /malformed at "\/layers"/],
    [
      { schemaVersion: 2, mediaType: OCI_MANIFEST, config: { ...config, digest: '../../etc' }, layers: [] },
      /config\/digest/,
    ],
    [
      { schemaVersion: 2, mediaType: OCI_MANIFEST, config: { ...config, size: -1 }, layers: [] },
      /config\/size/,
    ],
    [[], /malformed/],
  ];
  for (const [document, message] of documents) {
    const make = (fake: FakeRegistry): string => {
      fake.servePart(blobOfJson(document, OCI_MANIFEST), 'latest');
      return `${fake.host}/fake/image`;
    };
    await refusedFake(make, 'image.unsupported', message);
  }
});

test('a layer that is no archive is unsupported', async () => {
  const layer = blob(randomBytes(5000), 'application/vnd.oci.image.layer.v1.tar');
  const broken: TestImage = {
    ...image,
    layers: [layer],
    manifest: buildManifest({ config: image.config, layers: [layer] }),
  };
  await refusedFake((fake) => fake.serve(broken), 'image.unsupported', /cannot be unpacked/);
});

test('without credentials, and with wrong ones, a registry that wants some refuses', async () => {
  await using registry = node.trust(await TestRegistry.start({ authorization: 'password' }));
  const reference = await registry.pushImage(image, 'team/app');
  await refused(reference, 'image.unauthorized', /no credentials/);
  const wrong = await node.store({ folder, credentials: () => ({ username: 'alice', password: 'wrong' }) });
  await assert.rejects(wrong.pull(reference), { code: 'image.unauthorized' });
  await using tokens = node.trust(await TestRegistry.start({ authorization: 'token' }));
  await refused(await tokens.pushImage(image, 'team/app'), 'image.unauthorized', /token/);
});

test("a manifest of another's layers, which this node has, is no way to get at them", async () => {
  await using owner = node.trust(await FakeRegistry.start());
  await using thief = node.trust(await FakeRegistry.start());
  const own = await store.pull(owner.serve(image));
  thief.servePart(image.manifest, 'latest');
  thief.servePart(image.config);
  await assert.rejects(store.pull(`${thief.host}/fake/image`), { code: 'image.not-found' });
  const other = buildImage({ files: [{ path: 'a' }], config: { Cmd: ['x'] } });
  const config = {
    ...image,
    config: blobOfJson({ ...JSON.parse(image.config.bytes.toString()), x: 1 }, image.config.mediaType),
  };
  thief.serve({ ...config, layers: other.layers, manifest: buildManifest(config) }, 'again');
  await assert.rejects(store.pull(`${thief.host}/fake/image:again`), {
    code: 'image.not-found',
    message: /is not in/,
  });
  await store.remove(own.reference);
  await node.assertNothingLeft(folder);
});

test("nor is one that breaks off until another's pull has brought the layer", async () => {
  await using owner = node.trust(await FakeRegistry.start());
  await using thief = node.trust(await FakeRegistry.start());
  const own = owner.serve(image);
  const config = { ...JSON.parse(image.config.bytes.toString()), x: 2 };
  const stolen = { ...image, config: blobOfJson(config, image.config.mediaType) };
  const reference = thief.serve({ ...stolen, manifest: buildManifest(stolen) });
  thief.handler = (request, response, part) => {
    if (part !== image.layers[0]) return false;
    if (request.method === 'HEAD') response.writeHead(404).end();
    else void store.pull(own).finally(() => response.destroy());
    return true;
  };
  await assert.rejects(store.pull(reference), { code: 'image.not-found', message: /is not in/ });
  await store.remove(own);
  await node.assertNothingLeft(folder);
});
