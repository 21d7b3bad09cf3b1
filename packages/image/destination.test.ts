// Which addresses a tenant's choice of a registry reaches: public ones, and what the node's operator listed.
import assert from 'node:assert/strict';
import { networkInterfaces } from 'node:os';
import { after, before, test } from 'node:test';
import { CloisterError } from '@cloister/model/errors.ts';
import { type Address, addressesOf } from './destination.ts';
import { FakeRegistry } from './fakeRegistry.ts';
import { buildImage } from './testImage.ts';
import { TestNode } from './testNode.ts';

const image = buildImage({ files: [{ path: 'a' }] });
const v4 = (address: string): Address => ({ address, family: 4 });

let node: TestNode;
let fake: FakeRegistry;
before(async () => {
  [node, fake] = await Promise.all([TestNode.start(), FakeRegistry.start()]);
  fake.serve(image);
});
after(async () => {
  await node[Symbol.asyncDispose]();
  await fake.stop();
});

test('public addresses may be called, and no others', async () => {
  const own = Object.values(networkInterfaces()).flatMap((list) =>
    (list ?? []).map(({ address }) => address),
  );
  const internal = [
    ...['127.0.0.1', '127.9.9.9', '0.0.0.0', '10.0.0.1', '172.16.0.1', '172.31.255.255', '192.168.1.1'],
    ...['100.64.0.1', '100.100.100.200', '169.254.169.254', '168.63.129.16', '192.0.0.192', '198.18.0.1'],
    ...['224.0.0.1', '255.255.255.255', '192.0.2.1', '::', '::1', 'fe80::1', 'fc00::1', 'fd00:ec2::254'],
    ...['::ffff:8.8.8.8', '::ffff:127.0.0.1', '64:ff9b::7f00:1', '2002:7f00:1::', '2001::1', 'ff02::1'],
    ...own,
  ];
  const find = async (addresses: readonly string[]): Promise<unknown> =>
    await addressesOf(new URL('https://registry.example/'), {
      lookUp: async () => addresses.map((address) => ({ address, family: address.includes(':') ? 6 : 4 })),
    });
  for (const address of ['8.8.8.8', '172.32.0.1', '100.128.0.1', '2606:4700::1111', '2a00:1450::1']) {
    assert.ok(await find([address]), address);
    for (const other of internal) assert.equal(await find([address, other]), undefined, other);
  }
  for (const address of internal) assert.equal(await find([address]), undefined, address);
});

test('an address, however it is written, is the address that it is', async () => {
  for (const host of [
    '2130706433',
    '0x7f.1',
    '0177.0.0.1',
    '127.1',
    '[::ffff:7f00:1]',
    'localhost',
    'LOCALHOST.',
  ])
    assert.equal(await addressesOf(new URL(`https://${host}:5000/`), {}), undefined, host);
});

test('what is inside is refused in the words for what does not exist, and nobody is called', async () => {
  const port = fake.host.split(':')[1];
  const store = await node.store({ insecureRegistries: [] });
  const hosts = [
    fake.host,
    `localhost:${port}`,
    `0x7f.1:${port}`,
    `[::1]:${port}`,
    `nothing.invalid:${port}`,
  ];
  const words = new Set<string>();
  for (const host of [...hosts, '169.254.169.254', '10.0.0.1:6443']) {
    await assert.rejects(store.pull(`${host}/team/app`), (error) => {
      assert.ok(error instanceof CloisterError && error.code === 'image.registry-unreachable', String(error));
      assert.equal(error.cause, undefined);
      words.add(error.message.replace(new URL(`https://${host}`).host, 'HOST'));
      return true;
    });
  }
  assert.equal(words.size, 1, [...words].join('\n'));
  assert.equal(fake.connections, 0);
});

test('a listed registry is called without TLS, or with it, at that port only', async () => {
  const insecure = await node.store({ insecureRegistries: [fake.host] });
  await insecure.pull(`${fake.host}/fake/image`);
  const before = fake.connections;
  assert.ok(before > 0);
  const internal = await node.store({ internalRegistries: [fake.host], insecureRegistries: [] });
  await assert.rejects(internal.pull(`${fake.host}/fake/image`), {
    message: /SSL|TLS|EPROTO|closed|hang up/,
  });
  assert.ok(fake.connections > before);
  const other = await node.store({ internalRegistries: ['127.0.0.1'], insecureRegistries: ['127.0.0.1:1'] });
  await assert.rejects(other.pull(`${fake.host}/fake/image`), { message: /^No public address/ });
});

test('a connection goes to the address that was looked at, whatever the name says afterwards', async () => {
  const port = fake.host.split(':')[1];
  const host = `registry.invalid:${port}`;
  const asked: string[] = [];
  const store = await node.store({
    insecureRegistries: [host],
    lookUp: async (name) => {
      asked.push(name);
      return [v4('127.0.0.1')];
    },
  });
  await store.pull(`${host}/fake/image`);
  assert.deepEqual(new Set(asked), new Set(['registry.invalid'])); // the system knows no such name
});

test('where the operator allows some registries, images of others are refused, on the node or not', async () => {
  const options = { folder: `${node.folder}/allowed`, insecureRegistries: [fake.host] };
  await using open = await node.store(options);
  await open.pull(`${fake.host}/fake/image`);
  await open.close();
  const strict = await node.store({ ...options, allowedRegistries: ['docker.io'] });
  await assert.rejects(strict.pull(`${fake.host}/fake/image`), { message: /does not allow images from/ });
});
