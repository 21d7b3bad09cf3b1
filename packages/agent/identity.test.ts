// How a machine becomes a node, and stays it: against a real control plane.
import assert from 'node:assert/strict';
import { readdir, stat, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { silentLogger } from '@cloister/kit/log.ts';
import { loadOrJoin } from './identity.ts';
import { readSettings, type Settings } from './settings.ts';
import { TestCluster } from './testCluster.ts';

let cluster: TestCluster;
before(async () => {
  cluster = await TestCluster.start();
});
after(async () => await cluster[Symbol.asyncDispose]());

const settings = async (nodeName: string, more: object = {}): Promise<Settings> =>
  readSettings(await cluster.settings({ nodeName, ...more }));
const identity = async (of: Settings) => await loadOrJoin(of, silentLogger);

test('it joins with a token once, and is the same ever after, though the token is gone and the cluster away', async () => {
  const one = await settings('one');
  const joined = await identity(one);
  await assert.rejects(stat(one.joinTokenFile ?? ''), { code: 'ENOENT' }, 'it is used up');
  const folder = join(one.stateFolder, 'identity');
  for (const name of ['', ...(await readdir(folder))]) {
    const { mode } = await stat(join(folder, name));
    assert.equal(mode & 0o077, 0, `others may not read ${name}`);
  }
  assert.deepEqual(await identity({ ...one, apiUrl: 'https://127.0.0.1:1' }), joined);
  await assert.rejects(identity({ ...one, nodeName: 'other' }), {
    code: 'state.wrong',
    message: /"one".*"other"/,
  });
});

test('a token that is used, expired, of another node, made up or missing is refused as just that', async () => {
  const token = async (body: object): Promise<string> =>
    (await cluster.must('POST', '/v1/join-tokens', body)).secret;
  const joinsWith = async (nodeName: string, secret: string) => {
    const of = await settings(nodeName);
    await writeFile(of.joinTokenFile ?? '', secret);
    return await identity(of);
  };
  const used = await token({});
  await joinsWith('first', used);
  await assert.rejects(joinsWith('second', used), { code: 'join.token-used' });
  const expired = await token({ ttlMs: 1 });
  await new Promise((resolve) => setTimeout(resolve, 5));
  await assert.rejects(joinsWith('third', expired), { code: 'join.token-expired' });
  await assert.rejects(joinsWith('fourth', await token({ nodeName: 'fifth' })), {
    code: 'join.token-invalid',
  });
  await assert.rejects(joinsWith('fourth', used.replace(/.{8}$/, 'deadbeef')), {
    code: 'join.token-invalid',
  });
  await assert.rejects(joinsWith('fourth', ' \n'), { code: 'join.token-invalid', message: /no join token/ });
  assert.equal((await joinsWith('fourth', await token({}))).nodeName, 'fourth', 'a refusal spoils nothing');
});

test('two agents do not get one name; one that was cut off in the middle of joining does', async () => {
  const taken = await settings('taken');
  const { nodeId } = await identity(taken);
  const { stateFolder } = await settings('elsewhere');
  await assert.rejects(identity(await settings('taken', { stateFolder })), { code: 'join.name-taken' });
  // It joined, and its identity never got to the disk: it comes with the same instance id, and a new token.
  await writeFile(join(taken.stateFolder, 'identity/identity.json'), '{"nodeId":');
  const again = await settings('taken');
  await assert.rejects(identity(again), { code: 'internal', message: /join again with a new token/ });
  await unlink(join(taken.stateFolder, 'identity/identity.json'));
  assert.equal((await identity(again)).nodeId, nodeId);
});

test('a refused agent says what to do', async () => {
  const of = await cluster.settings({ nodeName: 'hint' });
  await writeFile(String(of['joinTokenFile']), 'clj_made_up');
  const { exitCode, stderr } = await cluster.refusedAgent(of);
  assert.equal(exitCode, 1);
  assert.match(stderr, /not made by this cluster\. Create a new join token with "cloister node token"\./);
});
