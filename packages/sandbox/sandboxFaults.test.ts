// What breaks, breaks into a state with a reason, and leaves nothing.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { afterEach, describe, test } from 'node:test';
import { encodeFrame } from './frames.ts';
import type { Sandbox } from './sandbox.ts';
import { SandboxFixture } from './sandboxFixture.ts';
import type { MachineRecord } from './sandboxFolder.ts';
import type { VmmDriver } from './vmm.ts';

let fixture: SandboxFixture;
afterEach(async () => await fixture[Symbol.asyncDispose]());

async function failure(sandbox: Sandbox): Promise<{ code: string; message: string }> {
  await sandbox.ended;
  assert.ok(sandbox.state.phase === 'failed', JSON.stringify(sandbox.state));
  assert.deepEqual(await fixture.leftOf(sandbox), []);
  return sandbox.state.reason;
}

describe('a machine', () => {
  test('that is killed from outside is said to be', async () => {
    fixture = await SandboxFixture.open();
    const sandbox = fixture.shell('echo up; sleep 1000');
    await fixture.outputHas(sandbox, 'up');
    const path = join(fixture.jails.folder, 'sandboxes', sandbox.id, 'machine.json');
    const machine = JSON.parse(await readFile(path, 'utf8')) as MachineRecord;
    process.kill(machine.process.pid, 'SIGKILL');
    const { code } = await failure(sandbox);
    assert.equal(code, 'sandbox.vmm-died');
    assert.equal((await fixture.output(sandbox)).toString(), 'up\n');
  });

  test('whose kernel panics leaves its last words', async () => {
    fixture = await SandboxFixture.open();
    const sandbox = fixture.shell('echo up; sleep 0.2; echo c > /proc/sysrq-trigger; sleep 1000');
    const { code, message } = await failure(sandbox);
    assert.equal(code, 'sandbox.guest-panic', message);
    assert.match(message, /Kernel panic.*sysrq triggered crash/);
  });

  test('with too little memory to boot says so', async () => {
    fixture = await SandboxFixture.open();
    const resources = { cpuMilli: 1000, memoryMiB: 64, diskMiB: 64 };
    const { code, message } = await failure(fixture.create(['true'], { resources }));
    assert.equal(code, 'sandbox.boot-failed', message);
    assert.match(message, /64 MiB of memory/);
  });

  test('that never answers is given up', async () => {
    fixture = await SandboxFixture.open();
    await fixture.reopen({ bootTimeoutMs: 100 });
    const { code } = await failure(fixture.create(['true']));
    assert.equal(code, 'sandbox.boot-timeout');
  });
});

/** A machine as always, with a compromised VMM's idea of the channel. */
async function openWithGuest(guest: (sent: Buffer) => Iterable<Buffer>): Promise<void> {
  fixture = await SandboxFixture.open();
  const { driver } = fixture;
  const hostile: VmmDriver = {
    name: driver.name,
    acceleration: driver.acceleration,
    rootPath: driver.rootPath,
    memoryOverheadMiB: driver.memoryOverheadMiB,
    launch: (machine, runPath) => driver.launch(machine, runPath),
    connectConsole: (runPath, timeoutMs, signal) => driver.connectConsole(runPath, timeoutMs, signal),
    connectChannel: async () => {
      const lies: Duplex = new Duplex({
        read() {},
        write(chunk: Buffer, _encoding, done) {
          for (const lie of guest(chunk)) lies.push(lie);
          done();
        },
      });
      return lies;
    },
  };
  await fixture.reopen({ driver: hostile, bootTimeoutMs: 5_000 });
}

const zeros = Buffer.alloc(8);

/** HELLO to the RESUME in what the host sent. */
function hello(sent: Buffer): Buffer[] {
  const at = sent.indexOf(1);
  if (sent.length < 100 || at < 0) return [];
  const nonce = sent.subarray(at + 12, at + 28);
  return [encodeFrame(0x81, 0, 0, Buffer.concat([nonce, Buffer.from([1, 0, 0, 0])]))];
}

describe('a guest', () => {
  test('that sends garbage is ended', async () => {
    await openWithGuest(function* () {
      for (let i = 0; i < 40; i++) yield Buffer.alloc(32_768, 0xab);
    });
    assert.equal((await failure(fixture.create(['true']))).code, 'sandbox.guest-protocol');
  });

  test('that claims output beyond its limit is ended', async () => {
    await openWithGuest(function* (sent) {
      yield* hello(sent);
      if (sent[0] === 2) {
        yield encodeFrame(0x83, 0, 0, Buffer.alloc(0));
        for (let i = 0; i < 16; i++) {
          const offset = Buffer.alloc(8);
          offset.writeUInt32LE(i * 32_760);
          yield encodeFrame(0x84, 0, 1, Buffer.concat([offset, Buffer.alloc(32_760, 0x61)]));
        }
      }
    });
    assert.equal((await failure(fixture.create(['true']))).code, 'sandbox.guest-protocol');
  });

  test('that exits before its output has ended is ended', async () => {
    await openWithGuest(function* (sent) {
      yield* hello(sent);
      if (sent[0] === 2) yield encodeFrame(0x88, 0, 0, Buffer.from([0, 0, 0]));
    });
    assert.equal((await failure(fixture.create(['true']))).code, 'sandbox.guest-protocol');
  });

  test('that answers for processes that there are not changes nothing', async () => {
    await openWithGuest(function* (sent) {
      yield* hello(sent);
      if (sent[0] !== 2) return;
      yield encodeFrame(0x88, 77, 0, Buffer.from([0, 0, 0]));
      yield encodeFrame(0x83, 0, 0, Buffer.alloc(0));
      yield encodeFrame(0x85, 0, 1, zeros);
      yield encodeFrame(0x85, 0, 2, zeros);
      yield encodeFrame(0x88, 0, 0, Buffer.from([0, 4, 0]));
    });
    const sandbox = fixture.create(['true']);
    await sandbox.ended;
    assert.deepEqual(sandbox.state, { phase: 'exited', exitCode: 4, oomKilled: false });
    assert.deepEqual(await fixture.leftOf(sandbox), []);
  });
});
