// A program in the background: found again by whoever comes later, also when its starter was killed at a bad moment.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { readFileIfThere } from '@cloister/kit/file.ts';
import { Service } from './service.ts';

/** Says that it is ready when it finds a file of this name in its folder. */
const PROGRAM = `
  const { existsSync } = await import('node:fs');
  const timer = setInterval(() => {
    if (!existsSync(process.argv[1] + '/go')) return;
    console.log('ready');
    clearInterval(timer);
  }, 5);
  setInterval(() => {}, 1000);`;

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cloister-service-'));
});
beforeEach(async () => await writeFile(join(folder, 'go'), ''));
after(async () => {
  await service().stop();
  await service('another').stop();
  await rm(folder, { recursive: true, force: true });
});

test('one that was not recorded any more is found, recorded, and stopped', async () => {
  const started = await service().start();
  await rm(pidPath());
  assert.deepEqual(await service().find(), started);
  assert.deepEqual(await service().start(), started);
  assert.deepEqual(JSON.parse((await readFileIfThere(pidPath())) ?? ''), started);
  await rm(pidPath());
  await service().stop();
  assert.equal(await service().find(), undefined);
});

test('one of the same program with other arguments is not taken for it', async () => {
  const other = await service('another').start();
  assert.equal(await service().find(), undefined);
  await service().stop();
  assert.deepEqual(await service('another').find(), other);
  await service('another').stop();
});

test('one that runs and is not ready yet is waited for, and not ended by whoever waits no longer', async () => {
  await rm(join(folder, 'go'));
  const first = service().start();
  while ((await readFileIfThere(pidPath())) === undefined) await new Promise(setImmediate);
  const reason = new Error('Ctrl-C');
  await assert.rejects(service().start(AbortSignal.abort(reason)), reason);
  const whatItSaid = service()
    .start()
    .then(() => readFileIfThere(join(folder, 'program.out')));
  await writeFile(join(folder, 'go'), '');
  assert.equal(await whatItSaid, 'ready\n');
  assert.deepEqual(await service().find(), await first);
  await service().stop();
});

const pidPath = (): string => join(folder, 'program.pid');

function service(name = 'program'): Service {
  return new Service({
    folder,
    name,
    command: process.execPath,
    args: ['--input-type=module', '-e', PROGRAM, folder, name],
    startTimeoutMs: 10_000,
    stopTimeoutMs: 10_000,
  });
}
