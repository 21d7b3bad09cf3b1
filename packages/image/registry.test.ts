// What the client does with registries that break off, redirect, and ask for proof.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CloisterError } from '@cloister/model/errors.ts';
import fc from 'fast-check';
import { basicAuthorization, parseChallenge } from './authorization.ts';
import { parseConfig } from './config.ts';
import { FakeRegistry } from './fakeRegistry.ts';
import type { ImageStore } from './images.ts';
import { parseManifest } from './manifest.ts';
import { buildImage } from './testImage.ts';
import { TestNode } from './testNode.ts';
import { TestRegistry } from './testRegistry.ts';

const alice = { username: 'alice', password: 'secret' };
const image = buildImage({ files: [{ path: 'file', content: randomBytes(1_000_000) }] });
const layer = image.layers[0]!;

let node: TestNode;
let store: ImageStore;
before(async () => {
  node = await TestNode.start();
  store = await node.store({
    folder: join(node.folder, 'store'),
    credentials: () => alice,
    idleTimeoutMs: 500,
  });
});
after(async () => await node[Symbol.asyncDispose]());

async function pullAndRemove(reference: string): Promise<void> {
  const pulled = await store.pull(reference);
  assert.equal(pulled.digest, image.manifest.digest);
  await store.remove(reference);
}

for (const authorization of ['password', 'token'] as const) {
  test(`an image behind a ${authorization} is pulled with the node's credentials`, async () => {
    await using registry = node.trust(await TestRegistry.start({ authorization }));
    const known = await node.store({
      credentials: (host) => (host === registry.host ? registry.credentials : undefined),
    });
    const reference = await registry.pushImage(image, 'team/app');
    assert.equal((await known.pull(reference)).digest, image.manifest.digest);
    await known.remove(reference);
  });
}

test('a layer that breaks off is gone on with where it was', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  const reference = fake.serve(image);
  const starts: number[] = [];
  fake.handler = (request, response, part) => {
    if (part !== layer || request.method !== 'GET') return false;
    const start = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
    starts.push(start);
    const range = `bytes ${start}-${layer.bytes.length - 1}/${layer.bytes.length}`;
    response.writeHead(start > 0 ? 206 : 200, start > 0 ? { 'content-range': range } : {});
    const end = starts.length < 4 ? start + 250_000 : layer.bytes.length;
    response.write(layer.bytes.subarray(start, end), () => {
      if (starts.length < 4) response.destroy();
      else response.end();
    });
    return true;
  };
  await pullAndRemove(reference);
  assert.equal(starts.length, 4);
  assert.ok(
    starts.every((start, at) => at === 0 || start > starts[at - 1]!),
    String(starts),
  );
});

test('a layer that stalls is asked for again, from the beginning where the registry knows no ranges', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  const reference = fake.serve(image);
  let attempts = 0;
  fake.handler = (request, response, part) => {
    if (part !== layer || request.method !== 'GET') return false;
    attempts += 1;
    response.writeHead(200);
    if (attempts === 1) response.write(layer.bytes.subarray(0, 300_000));
    else response.end(layer.bytes);
    return true;
  };
  await pullAndRemove(reference);
  assert.equal(attempts, 2);
});

test('a layer that never gets on fails after a bounded number of attempts', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  const reference = fake.serve(image);
  let attempts = 0;
  fake.handler = (request, response, part) => {
    if (part !== layer || request.method !== 'GET') return false;
    attempts += 1;
    response.destroy();
    return true;
  };
  await assert.rejects(store.pull(reference), { code: 'image.registry-unreachable' });
  assert.ok(attempts >= 3 && attempts <= 6, String(attempts));
  await node.assertNothingLeft(join(node.folder, 'store'));
});

test('a registry that trickles is given up, however it begins anew', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  const reference = fake.serve(image);
  const slow = await node.store({
    folder: join(node.folder, 'slow'),
    rateWindowMs: 400,
    minBytesPerSecond: 10_000_000,
  });
  let sent = 0;
  fake.handler = (request, response, part) => {
    if (part !== layer || request.method !== 'GET') return false;
    const start = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
    const range = `bytes ${start}-${layer.bytes.length - 1}/${layer.bytes.length}`;
    response.writeHead(start > 0 ? 206 : 200, start > 0 ? { 'content-range': range } : {});
    const timer = setInterval(() => {
      sent += 1;
      response.write(layer.bytes.subarray(start + sent, start + sent + 1));
      if (sent % 10 === 0) response.destroy();
    }, 20);
    response.on('close', () => clearInterval(timer));
    return true;
  };
  await assert.rejects(slow.pull(reference), { code: 'image.pull-failed', message: /too slow/ });
  assert.ok(sent < 100, String(sent));
  await node.assertNothingLeft(join(node.folder, 'slow'));
});

test('a redirect to another host is followed without our credentials', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  await using blobs = node.trust(await FakeRegistry.start());
  const reference = fake.serve(image);
  blobs.servePart(layer);
  fake.handler = (request, response, part) => {
    if (request.headers.authorization !== basicAuthorization(alice)) {
      response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end();
      return true;
    }
    if (part !== layer) return false;
    response.writeHead(307, { location: `http://${blobs.host}/elsewhere/${layer.digest}` }).end();
    return true;
  };
  await pullAndRemove(reference);
  assert.equal(blobs.requests.length, 1);
  assert.equal(blobs.requests[0]!.headers.authorization, undefined);
});

test('redirects in a circle end', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  fake.handler = (request, response) => {
    response.writeHead(302, { location: request.url }).end();
    return true;
  };
  await assert.rejects(store.pull(`${fake.host}/a`), {
    code: 'image.pull-failed',
    message: /redirects more than 5 times/,
  });
  assert.equal(fake.requests.length, 6);
});

test('credentials go to nobody but the registry that they are for', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  const seen: (string | undefined)[] = [];
  const tokens = createServer((request, response) => {
    seen.push(request.headers.authorization);
    response.end(JSON.stringify({ token: 'abc' }));
  }).listen(0, '127.0.0.1');
  await once(tokens, 'listening');
  const address = tokens.address();
  const host = `127.0.0.1:${typeof address === 'object' ? address?.port : 0}`;
  const realm = `http://${node.trust({ host }).host}/token`;
  fake.handler = (request, response) => {
    if (request.headers.authorization === 'Bearer abc') return false;
    response
      .writeHead(401, {
        'www-authenticate': `Bearer realm="${realm}",service="s",scope="repository:other:push"`,
      })
      .end();
    return true;
  };
  const other = await node.store({
    credentials: (host) => (host === 'registry.example' ? alice : undefined),
  });
  const reference = fake.serve(image);
  await other.pull(reference);
  await other.remove(reference);
  tokens.close();
  assert.deepEqual(seen, [undefined]);
});

test('a registry sends nobody to what the operator did not list, by redirects or for tokens, nor without TLS', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  await using inside = await FakeRegistry.start();
  const elsewhere = `https://${inside.host}/v2/x`;
  const unreachable = { code: 'image.registry-unreachable', message: /^No public address is known for / };
  const plain = { code: 'image.pull-failed', message: /not HTTPS/ };
  for (const [location, refusal] of [
    [elsewhere, unreachable],
    ['https://169.254.169.254/latest/', unreachable],
    ['http://8.8.8.8/', plain],
    [`http://${inside.host}/`, plain],
    ['file:///etc/passwd', plain],
  ] as const) {
    const header = `Bearer realm="${location}"`;
    const redirect = { status: 302, headers: { location } };
    for (const { status, headers } of [redirect, { status: 401, headers: { 'www-authenticate': header } }]) {
      fake.handler = (_, response) => {
        response.writeHead(status, headers).end();
        return true;
      };
      await assert.rejects(store.pull(`${fake.host}/a`), refusal, location);
    }
  }
  assert.equal(inside.connections, 0);
});

test('challenges are read as registries write them', () => {
  const bearer = parseChallenge('Bearer realm="https://auth.example/token",service="a \\"b\\"",scope="x,y"');
  assert.deepEqual(bearer, { scheme: 'bearer', realm: 'https://auth.example/token', service: 'a "b"' });
  assert.deepEqual(parseChallenge('Basic realm="x"'), { scheme: 'basic' });
  assert.deepEqual(parseChallenge('basic realm="x", bearer realm=https://a.example/t')?.scheme, 'bearer');
  for (const nothing of [
    null,
    '',
    'Negotiate',
    'Bearer',
    'Bearer realm="not a url"',
    `Basic ${'x'.repeat(10_000)}`,
  ]) {
    assert.equal(parseChallenge(nothing), undefined);
  }
});

test('no document that a registry can send is anything but parsed or refused', () => {
  const manifest = parseManifest(image.manifest.bytes, '');
  assert.ok(manifest.kind === 'manifest');
  const words = fc.constantFrom(
    ...'schemaVersion mediaType config layers manifests platform digest size os rootfs diff_ids Env Cmd Volumes'.split(
      ' ',
    ),
  );
  const values = fc.oneof(
    fc.constantFrom(2, -1, null, 'x', image.manifest.mediaType, layer.digest),
    fc.jsonValue(),
  );
  const documents = fc.dictionary(
    words,
    fc.oneof(values, fc.dictionary(words, values), fc.array(fc.dictionary(words, values))),
  );
  fc.assert(
    fc.property(documents, (document) => {
      const bytes = Buffer.from(
        JSON.stringify({ schemaVersion: 2, mediaType: image.manifest.mediaType, ...document }),
      );
      for (const parse of [() => parseManifest(bytes, ''), () => parseConfig(bytes, manifest)]) {
        try {
          parse();
        } catch (error) {
          assert.ok(error instanceof CloisterError && error.code === 'image.unsupported', String(error));
        }
      }
    }),
    { numRuns: 1000 },
  );
});
