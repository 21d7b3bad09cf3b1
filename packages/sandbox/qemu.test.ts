// QEMU in its jail, with the guest that `make guest` builds: it boots, and has no more than it needs.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { systemClock } from '@cloister/kit/clock.ts';
import { poll, withTimeout } from '@cloister/kit/wait.ts';
import { GuestChannel } from './channel.ts';
import { hostTscKhz } from './hostTsc.ts';
import { cgroupMounts } from './jailCgroup.ts';
import { builtGuest, JailFixture, TEST_UID } from './jailFixture.ts';
import { isAlive, type JailProcess } from './jailProcess.ts';
import { QemuDriver } from './qemu.ts';
import { bootOnce, chooseAcceleration, emptySquashfs } from './qemuProbe.ts';
import { prepareQemuRoot, type QemuRoot } from './qemuRoot.ts';
import { createScratch } from './scratch.ts';

const BOOT_TIMEOUT_MS = 30_000;
const MEMORY_MIB = 128;

let fixture: JailFixture;
let root: QemuRoot;
let driver: QemuDriver;

before(async () => {
  fixture = await JailFixture.open();
  root = await prepareQemuRoot(fixture.folder, 'tcg');
  driver = new QemuDriver({ acceleration: 'tcg', rootPath: root.path, tscKhz: await hostTscKhz() });
});
after(async () => await fixture[Symbol.asyncDispose]());

const options = () => ({
  statePath: fixture.folder,
  jails: fixture.jails,
  guest: builtGuest,
  uid: TEST_UID,
  parentCgroupPath: fixture.parentCgroupPath,
});

describe('a machine in its jail', () => {
  let name: Awaited<ReturnType<JailFixture['name']>>;
  let vmm: JailProcess;
  let channel: GuestChannel;
  let runPath: string;

  before(async () => {
    name = await fixture.name();
    runPath = join(name.folder, 'run');
    const imagePath = join(name.folder, 'image');
    const scratchPath = join(name.folder, 'scratch');
    await writeFile(imagePath, emptySquashfs());
    await createScratch({ path: scratchPath, sizeMiB: 64, uid: TEST_UID, reserveMiB: 0 });
    const launch = driver.launch(
      { guest: builtGuest, imagePath, scratchPath, memoryMiB: MEMORY_MIB, vcpus: 2 },
      runPath,
    );
    vmm = await fixture.jails.start({
      ...name,
      rootPath: root.path,
      launch,
      uid: TEST_UID,
      limits: { memoryMiB: MEMORY_MIB + launch.memoryOverheadMiB, cpuMilli: 1500 },
    });
    channel = await connect();
  });
  after(() => channel?.close());

  async function connect(): Promise<GuestChannel> {
    const stream = await driver.connectChannel(runPath, 5_000);
    const connected = new GuestChannel(stream, { resumedProcesses: () => [], message: () => {} });
    await withTimeout(connected.ready, BOOT_TIMEOUT_MS, () => new Error('the guest did not answer'));
    return connected;
  }

  test('its guest answers, and answers the next one who connects', async () => {
    channel.close();
    channel = await connect();
  });

  test('its process is nobody, can become nobody else, and asks the kernel for little', () => {
    const status = readFileSync(`/proc/${vmm.pid}/status`, 'utf8');
    const field = (key: string) => new RegExp(`^${key}:[ \\t]*(.*)$`, 'm').exec(status)?.[1];
    assert.equal(field('Uid'), [TEST_UID, TEST_UID, TEST_UID, TEST_UID].join('\t'));
    assert.equal(field('Gid'), [TEST_UID, TEST_UID, TEST_UID, TEST_UID].join('\t'));
    assert.equal(field('Groups')?.trim(), '');
    for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
      assert.equal(field(set), '0'.repeat(16), set);
    assert.equal(field('NoNewPrivs'), '1');
    assert.equal(field('Seccomp'), '2');
    assert.equal(field('Seccomp_filters'), '2', "the jail's filter and QEMU's own");
  });

  test('its namespaces are its own', () => {
    for (const kind of ['pid', 'ipc', 'uts', 'mnt', 'net', 'cgroup']) {
      assert.notEqual(
        readlinkSync(`/proc/${vmm.pid}/ns/${kind}`),
        readlinkSync(`/proc/self/ns/${kind}`),
        kind,
      );
    }
    const interfaces = readFileSync(`/proc/${vmm.pid}/net/dev`, 'utf8').trim().split('\n').slice(2);
    assert.deepEqual(
      interfaces.map((line) => line.trim().split(':')[0]),
      ['lo'],
    );
  });

  test('it can write to its scratch disk and nowhere else', () => {
    const mounts = readFileSync(`/proc/${vmm.pid}/mountinfo`, 'utf8')
      .trim()
      .split('\n')
      .map((line) => line.split(' '));
    const places = Object.fromEntries(mounts.map((fields) => [fields[4], fields[5]?.split(',')[0]]));
    assert.deepEqual(places, {
      '/': 'ro',
      '/proc': 'ro',
      '/dev': 'ro',
      '/machine/kernel': 'ro',
      '/machine/initramfs': 'ro',
      '/machine/image': 'ro',
      '/machine/scratch': 'rw',
    });
  });

  test('it has no descriptor but its files, its sockets and its log', () => {
    const kinds = new Set(
      readdirSync(`/proc/${vmm.pid}/fd`).map((fd) =>
        readlinkSync(`/proc/${vmm.pid}/fd/${fd}`).replace(/:?\[.*/, ''),
      ),
    );
    const known = [
      '/dev/null',
      '/dev/urandom',
      '/machine/image',
      '/machine/scratch',
      'anon_inode',
      'socket',
      join(name.folder, 'jail/vmm.log'),
    ];
    assert.deepEqual(
      [...kinds].filter((kind) => !known.includes(kind) && !kind.startsWith('/memfd:')),
      [],
    );
  });

  test('its limits are set on the host', async () => {
    const limits = readFileSync(`/proc/${vmm.pid}/limits`, 'utf8');
    assert.match(limits, /^Max core file size\s+0\s+0/m);
    assert.match(limits, new RegExp(`^Max file size\\s+${64 * 1_048_576}\\s+${64 * 1_048_576}`, 'm'));
    const mounts = await cgroupMounts();
    const read = (names: string[]) =>
      mounts
        .flatMap((mount) => names.map((file) => join(mount, name.cgroupPath, file)))
        .flatMap((path) => {
          try {
            return [readFileSync(path, 'utf8').trim()];
          } catch {
            return [];
          }
        });
    const memory = `${(MEMORY_MIB + driver.memoryOverheadMiB) * 1_048_576}`;
    assert.deepEqual(read(['memory.limit_in_bytes', 'memory.max']), [memory]);
    assert.deepEqual(
      read(['memory.memsw.limit_in_bytes', 'memory.swap.max']).map((text) => text === memory || text === '0'),
      [true],
    );
    assert.deepEqual(
      read(['cpu.cfs_quota_us', 'cpu.max']).map((text) => text.split(' ')[0]),
      ['150000'],
    );
    assert.deepEqual(read(['pids.max']), ['82']);
  });

  test('idle, it sleeps: its clock does not tick', async () => {
    const switches = () =>
      readdirSync(`/proc/${vmm.pid}/task`)
        .map((thread) => readFileSync(`/proc/${vmm.pid}/task/${thread}/status`, 'utf8'))
        .reduce((sum, status) => sum + Number(/^voluntary_ctxt_switches:\s*(\d+)/m.exec(status)?.[1]), 0);
    // A tick of 250 Hz on two virtual CPUs would be 250 wake-ups in half a second, at least.
    let last = switches();
    await poll(
      () => {
        const now = switches();
        const woken = now - last;
        last = now;
        return woken > 0 && woken < 120 ? true : undefined;
      },
      {
        clock: systemClock,
        everyMs: 500,
        timeoutMs: 15_000,
        makeError: () => new Error('it never came to rest'),
      },
    );
  });

  test('killed, it is gone at once, and destroy leaves nothing of it', async () => {
    assert.equal(await fixture.jails.kill(vmm), true);
    await withTimeout(channel.closed, 2_000, () => new Error('the channel is still open'));
    await poll(async () => ((await isAlive(vmm)) ? undefined : true), {
      clock: systemClock,
      everyMs: 1,
      timeoutMs: 2_000,
      makeError: () => new Error('it lives'),
    });
    await assert.rejects(driver.connectChannel(runPath, 1_000), { code: 'sandbox.vmm-died' });
    await fixture.jails.destroy(name);
    assert.deepEqual(await fixture.leftOf(name), []);
  });
});

test('the root of the jails has what QEMU loads, belongs to root, and nobody can write to it', async () => {
  const lines = execFileSync('find', [root.path, '-printf', '%y %m %U:%G %P\n'], { encoding: 'utf8' })
    .trim()
    .split('\n');
  const allowed =
    /^(d 755 0:0 .*|f (444|555) 0:0 (usr\/bin\/qemu-system-x86_64|lib64\/ld-linux-x86-64\.so\.2|(usr\/)?lib\/.*\.so[.0-9]*|usr\/share\/qemu\/[a-z_]+\.(rom|bin)|machine\/[a-z]+)|c 666 0:0 dev\/(null|urandom))$/;
  assert.deepEqual(
    lines.filter((line) => !allowed.test(line)),
    [],
  );
  const before = statSync(root.path).ino;
  assert.equal((await prepareQemuRoot(fixture.folder, 'tcg')).path, root.path);
  assert.equal(statSync(root.path).ino, before, 'it is made once');
  assert.deepEqual(
    readdirSync(fixture.folder).filter((file) => file.includes('new')),
    [],
  );
});

test('a machine that does not answer in time is an error, and leaves nothing', async () => {
  await assert.rejects(bootOnce(driver, { ...options(), timeoutMs: 1 }), { code: 'sandbox.boot-failed' });
  assert.deepEqual(
    readdirSync(fixture.folder).filter((file) => file.startsWith('probe-')),
    [],
  );
  assert.deepEqual(
    (await fixture.jails.list(fixture.parentCgroupPath)).filter((id) => id.startsWith('probe-')),
    [],
  );
});

test('acceleration is chosen by booting, with a reason, and remembered', async () => {
  const first = await chooseAcceleration(options());
  assert.ok(first.why.length > 10);
  const again = await chooseAcceleration(options());
  assert.equal(again.acceleration, first.acceleration);
  if (!first.why.includes('cannot be opened')) assert.equal(again.why, `${first.why} (remembered)`);
  assert.deepEqual(
    readdirSync(fixture.folder).filter((file) => file.startsWith('probe-')),
    [],
  );
});

test('without /dev/kvm it is software emulation', async () => {
  const choice = await chooseAcceleration({ ...options(), kvmPath: join(fixture.folder, 'no-kvm') });
  assert.equal(choice.acceleration, 'tcg');
  assert.match(choice.why, /ENOENT/);
});
