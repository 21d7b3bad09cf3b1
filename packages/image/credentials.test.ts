// For whom a node shows its registries' passwords, and who gets at what came by them.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { FakeRegistry } from './fakeRegistry.ts';
import type { RegistryCredentials } from './registry.ts';
import { buildImage } from './testImage.ts';
import { TestNode } from './testNode.ts';
import { TestRegistry } from './testRegistry.ts';

const image = buildImage({ files: [{ path: 'a', content: 'private' }] });
const owner = { group: 'owner' };
const other = { group: 'other' };
const refused = { code: 'image.unauthorized' } as const;

let node: TestNode;
before(async () => {
  node = await TestNode.start();
});
after(async () => await node[Symbol.asyncDispose]());

for (const authorization of ['password', 'token'] as const) {
  test(`an image behind a ${authorization} is for the tenants that its credentials are for, on the node too`, async () => {
    const folder = join(node.folder, authorization);
    const digest = image.manifest.digest;
    let credentials: () => RegistryCredentials;
    let reference: string;
    {
      await using registry = node.trust(await TestRegistry.start({ authorization }));
      credentials = () => ({ ...registry.credentials, tenants: [owner.group] });
      const store = await node.store({ folder, credentials });
      reference = await registry.pushImage(image, 'team/app');
      const together = await Promise.allSettled([store.pull(reference, owner), store.pull(reference, other)]);
      assert.deepEqual(
        together.map(({ status }) => status),
        ['fulfilled', 'rejected'],
      );
      for (const stranger of [other, {}, { ...other, refresh: true }])
        await assert.rejects(store.pull(reference, stranger), refused);
      await assert.rejects(store.pull(`${registry.host}/team/app@${digest}`, other), refused);
      await store.close();
    }
    const again = await node.store({ folder, credentials });
    assert.equal((await again.pull(reference, owner)).digest, digest); // without the registry
    await assert.rejects(again.pull(reference, other), { code: 'image.registry-unreachable' });
    const changed = await node.store({ folder, credentials: () => ({ username: 'new', password: 'x' }) });
    await assert.rejects(changed.pull(reference, owner), { code: 'image.registry-unreachable' });
    await again.remove(reference);
  });
}

test('what a registry gives to everybody is for every tenant, without asking it again', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  const credentials = () => ({ username: 'alice', password: 'secret', tenants: [owner.group] });
  const store = await node.store({ credentials });
  const reference = fake.serve(image);
  await store.pull(reference, owner);
  const asked = fake.requests.length;
  await store.pull(reference, other);
  assert.equal(fake.requests.length, asked);
  assert.ok(!fake.requests.some(({ headers }) => headers.authorization));
  await store.remove(reference);
});

test('an image that its registry gives to everybody by now is for every tenant again', async () => {
  await using fake = node.trust(await FakeRegistry.start());
  let isPublic = false;
  fake.handler = (request, response) => {
    if (isPublic || request.headers.authorization) return false;
    response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end();
    return true;
  };
  const credentials = () => ({ username: 'alice', password: 'secret', tenants: [owner.group] });
  const store = await node.store({ credentials });
  const reference = fake.serve(image);
  await store.pull(reference, owner);
  await assert.rejects(store.pull(reference, other), refused);
  isPublic = true;
  await store.pull(reference, other);
  const asked = fake.requests.length;
  await store.pull(reference, { group: 'third' });
  assert.equal(fake.requests.length, asked);
  await store.remove(reference);
});
