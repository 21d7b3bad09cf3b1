// The jail by itself, with a small program in the VMM's place: what it may do, and that nothing of it stays.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '@cloister/kit/clock.ts';
import { poll } from '@cloister/kit/wait.ts';
import { type JailSpec, vmmLogPath } from './jail.ts';
import { JailFixture, TEST_UID } from './jailFixture.ts';
import { findProcess, isAlive, killProcess } from './jailProcess.ts';
import { QEMU_SYSTEM_CALLS, RUNTIME_SYSTEM_CALLS } from './systemCalls.ts';
import type { VmmLaunch } from './vmm.ts';

let fixture: JailFixture;
let rootPath: string;

before(async () => {
  fixture = await JailFixture.open();
  rootPath = join(fixture.folder, 'root');
  for (const folder of ['', 'proc', 'dev']) mkdirSync(join(rootPath, folder), { mode: 0o755 });
  execFileSync('gcc', [
    '-static',
    '-Wall',
    '-Wextra',
    '-Werror',
    '-o',
    join(rootPath, 'calls'),
    join(import.meta.dirname, 'jailCalls.c'),
  ]);
  execFileSync('mknod', ['-m', '666', join(rootPath, 'dev/null'), 'c', '1', '3']); // the runtime asks for it
});
after(async () => await fixture[Symbol.asyncDispose]());

async function spec(launch: Partial<VmmLaunch> = {}, more: Partial<JailSpec> = {}): Promise<JailSpec> {
  return {
    ...(await fixture.name()),
    rootPath,
    uid: TEST_UID,
    limits: { memoryMiB: 64, cpuMilli: 500 },
    launch: {
      args: ['/calls', 'stay'],
      binds: [],
      sockets: [],
      devices: [],
      memoryOverheadMiB: 0,
      threads: 20,
      systemCalls: [...QEMU_SYSTEM_CALLS, ...RUNTIME_SYSTEM_CALLS, 'pause'],
      rlimits: [],
      ...launch,
    },
    ...more,
  };
}

async function printed(jail: JailSpec, last: string): Promise<Record<string, string>> {
  const text = await poll(
    () => {
      const log = readFileSync(vmmLogPath(jail.folder), 'utf8');
      return log.includes(last) ? log : undefined;
    },
    {
      clock: systemClock,
      everyMs: 5,
      timeoutMs: 5_000,
      makeError: () => new Error(`the program never said "${last}"`),
    },
  );
  return Object.fromEntries(
    text
      .trim()
      .split('\n')
      .map((line) => line.split(' ') as [string, string]),
  );
}

test('a jail refuses every system call that was not asked for, and sockets, processes and writes', async () => {
  const outside = execFileSync(join(rootPath, 'calls'), { encoding: 'utf8', cwd: fixture.folder });
  for (const call of [
    'fork',
    'ptrace',
    'inet',
    'netlink',
    'unix',
    'keyctl',
    'io_uring',
    'bpf',
    'unshare',
    'write',
    'getpid',
  ]) {
    assert.match(
      outside,
      new RegExp(`^${call} ok$`, 'm'),
      `${call} works outside a jail, so that a refusal means something`,
    );
  }
  const jail = await spec();
  await fixture.jails.start(jail);
  assert.deepEqual(await printed(jail, 'unshare'), {
    fork: 'EPERM',
    ptrace: 'EPERM',
    inet: 'EPERM',
    netlink: 'EPERM',
    unix: 'EPERM',
    keyctl: 'EPERM',
    io_uring: 'EPERM',
    bpf: 'EPERM',
    write: 'EROFS',
    getpid: 'ok',
    unshare: 'EPERM',
  });
  assert.equal(existsSync(join(rootPath, 'written')), false);
});

test('a jail that asks for sockets gets unix sockets only', async () => {
  const jail = await spec({
    systemCalls: [...QEMU_SYSTEM_CALLS, ...RUNTIME_SYSTEM_CALLS, 'pause', 'socket'],
  });
  await fixture.jails.start(jail);
  const { unix, inet, netlink } = await printed(jail, 'unshare');
  assert.deepEqual({ unix, inet, netlink }, { unix: 'ok', inet: 'EPERM', netlink: 'EPERM' });
});

test('a killed process is known to be dead, and a process id used again is not hit', async () => {
  const jail = await spec();
  const started = await fixture.jails.start(jail);
  const impostor = { ...started, startTicks: started.startTicks + 1 };
  assert.equal(await isAlive(started), true);
  assert.equal(await isAlive(impostor), false);
  assert.equal(await killProcess(impostor), false);
  assert.equal(await isAlive(started), true);
  assert.equal(await fixture.jails.kill(started), true);
  await poll(async () => ((await isAlive(started)) ? undefined : true), {
    clock: systemClock,
    everyMs: 1,
    timeoutMs: 2_000,
    makeError: () => new Error('it lives'),
  });
  assert.equal(await findProcess(2 ** 22 + 1), undefined);
});

test('destroy removes a running jail whole, and does nothing the second time', async () => {
  const jail = await spec();
  const started = await fixture.jails.start(jail);
  assert.ok(
    (await fixture.leftOf(jail)).length >= 4,
    'a running jail shows in all places that are looked at',
  );
  assert.ok((await fixture.jails.list(fixture.parentCgroupPath)).includes(jail.id));
  await fixture.jails.destroy(jail);
  assert.equal(await isAlive(started), false);
  assert.deepEqual(await fixture.leftOf(jail), []);
  assert.equal((await fixture.jails.list(fixture.parentCgroupPath)).includes(jail.id), false);
  await fixture.jails.destroy(jail);
});

test('a start that is killed at any moment leaves nothing after destroy', async () => {
  for (const afterMs of [0, 3, 6, 9, 12, 16, 20, 25, 30, 40]) {
    const jail = await spec({}, { signal: AbortSignal.timeout(afterMs) });
    await fixture.jails.start(jail).catch(() => {});
    await fixture.jails.destroy(jail);
    await poll(async () => ((await fixture.leftOf(jail)).length === 0 ? true : undefined), {
      clock: systemClock,
      everyMs: 5,
      timeoutMs: 3_000,
      makeError: () => new Error(`killed after ${afterMs} ms, something of it stays`),
    });
    assert.deepEqual(await fixture.leftOf(jail), []);
  }
});

test('a start that fails says what the runtime said', async () => {
  const jail = await spec({ args: ['/no-such-program'] });
  await assert.rejects(fixture.jails.start(jail), (error: Error & { code: string }) => {
    assert.equal(error.code, 'sandbox.start-failed');
    assert.match(error.message, /no-such-program/);
    return true;
  });
  await fixture.jails.destroy(jail);
  assert.deepEqual(await fixture.leftOf(jail), []);
});

test('the root that jails share is not changed by what they mount', async () => {
  const jail = await spec();
  await fixture.jails.start(jail);
  await printed(jail, 'unshare');
  assert.deepEqual(
    execFileSync('find', [rootPath, '-printf', '%P\n'], { encoding: 'utf8' }).trim().split('\n').sort(),
    ['calls', 'dev', 'dev/null', 'proc'],
  );
});
