// The agent's configuration file, the credentials beside it, and what the machine has for work.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { CloisterError } from '@cloister/model/errors.ts';
import { newTenantId } from '@cloister/model/ids.ts';
import type { VmmDriver } from '@cloister/sandbox/vmm.ts';
import { capacityOf } from './capacity.ts';
import { readCredentials } from './credentials.ts';
import { cgroupPathOf, containerdFolderOf, readSettings, readSettingsFile } from './settings.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cloister-settings-'));
});
after(async () => await rm(folder, { recursive: true }));

const needed = (): Record<string, unknown> => ({
  stateFolder: join(folder, 'state'),
  guestFolder: '/guest',
  apiUrl: 'https://cloister.example',
  caFile: '/ca.pem',
  nodeName: 'node-1',
});

describe('settings', () => {
  test('have defaults for all that an operator need not know', () => {
    const settings = readSettings(needed());
    assert.equal(settings.maxSandboxes, 100);
    assert.deepEqual(settings.reserved, { cpuMilli: 0, memoryMiB: 1024, diskMiB: 4096 });
    assert.equal(cgroupPathOf(settings), '/cloister/node-1');
    assert.equal(containerdFolderOf(settings), join(folder, 'state/containerd'));
    assert.equal(settings.fenceAfterMs, 0);
  });

  test('that are wrong are refused with the path of the field', () => {
    const wrong: [string, unknown][] = [
      ['stateFolder', 'relative'],
      ['apiUrl', 'http://plain.example'],
      ['nodeName', 'Two Words'],
      ['cgroupPath', '/../..'],
      ['containerdFolder', `/${'x'.repeat(100)}`],
      ['maxSandboxes', 0],
      ['firstUid', 0],
    ];
    for (const [field, value] of wrong) {
      assert.throws(
        () => readSettings({ ...needed(), [field]: value }),
        (error: CloisterError) => error.code === 'request.invalid' && error.fields[0]?.path === `/${field}`,
        field,
      );
    }
    assert.throws(() => readSettings({ ...needed(), maxSandboxs: 3 }), { code: 'request.invalid' });
  });

  test('in a file that is not there, or no JSON, are an error that names the file', async () => {
    const path = join(folder, 'broken.json');
    await assert.rejects(readSettingsFile(undefined), { code: 'request.invalid' });
    await assert.rejects(readSettingsFile(path), { code: 'request.invalid', message: new RegExp(path) });
    await writeFile(path, '{');
    await assert.rejects(readSettingsFile(path), { code: 'request.invalid', message: new RegExp(path) });
  });
});

describe('credentials of registries', () => {
  const host = 'registry.example:5000';
  const path = (): string => join(folder, 'credentials.json');
  const write = async (value: object, mode = 0o600): Promise<void> => {
    await writeFile(path(), JSON.stringify(value));
    await chmod(path(), mode);
  };

  test('are read with the tenants that they are for', async () => {
    const [secret, tenants] = [{ username: 'u', password: 'p' }, [newTenantId()]];
    await write({ [host]: { ...secret, tenants }, 'docker.io': secret });
    const credentials = await readCredentials(path());
    assert.deepEqual(credentials.get(host), { ...secret, tenants });
    assert.deepEqual(credentials.get('docker.io'), secret);
    assert.equal(credentials.get('other.example'), undefined);
    assert.equal((await readCredentials(undefined)).size, 0);
  });

  test('that others may read, that are wrong, or that are not there, are refused', async () => {
    await write({}, 0o640);
    await assert.rejects(readCredentials(path()), { code: 'request.invalid', message: /chmod 600/ });
    for (const wrong of [{ username: 'u' }, { username: 'u', password: 'p', tenants: ['a name'] }]) {
      await write({ [host]: wrong });
      await assert.rejects(readCredentials(path()), { code: 'request.invalid' });
    }
    await assert.rejects(readCredentials('/nowhere'), { code: 'request.invalid' });
  });
});

test("capacity is the machine's, less what is reserved, and what sandboxes' disks take up is part of it", async () => {
  const driver = { memoryOverheadMiB: 77 } as VmmDriver;
  const reserved = { cpuMilli: 500, memoryMiB: 1_000_000_000, diskMiB: 0 };
  const settings = readSettings({ ...needed(), reserved, maxSandboxes: 7 });
  const sandbox = join(settings.stateFolder, 'sandboxes', 'alc-x');
  await mkdir(sandbox, { recursive: true });
  const before = await capacityOf(settings, driver, []);
  assert.equal(before.cpuMilli, cpus().length * 1000 - 500);
  assert.equal(before.memoryMiB, 0, 'never less than nothing');
  assert.deepEqual([before.sandboxes, before.sandboxOverheadMiB], [7, 77]);
  await writeFile(join(sandbox, 'scratch'), Buffer.alloc(32 * 1_048_576, 1));
  const [without, within] = [
    await capacityOf(settings, driver, []),
    await capacityOf(settings, driver, ['alc-x']),
  ];
  assert.equal(within.diskMiB - without.diskMiB > 16, true, JSON.stringify({ without, within }));
});
