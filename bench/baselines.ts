// What a start is compared with: the same guest under a QEMU started by hand, and the same image under runc alone.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '@cloister/kit/program.ts';
import { GuestChannel } from '@cloister/sandbox/channel.ts';
import { InheritedSocket } from '@cloister/sandbox/inheritedSocket.ts';
import { createScratch } from '@cloister/sandbox/scratch.ts';
import type { GuestArtifacts, VmmDriver } from '@cloister/sandbox/vmm.ts';

export interface BareMachine {
  readonly pid: number;
  /** From the exec of QEMU to the first word of the guest's init. */
  readonly bootMs: number;
  stop(): Promise<void>;
}

/**
 * QEMU without a jail, as root, in the host's namespaces: the arguments are those of the driver, with its paths as they
 * are outside. Init's marker is its HELLO.
 */
export async function bootBareQemu(
  driver: VmmDriver,
  machine: { guest: GuestArtifacts; imagePath: string; memoryMiB: number; diskMiB: number },
): Promise<BareMachine> {
  const folder = await mkdtemp(join(tmpdir(), 'bare-qemu-'));
  const scratchPath = join(folder, 'scratch');
  await createScratch({ path: scratchPath, sizeMiB: machine.diskMiB, uid: 0 });
  const { guest, imagePath, memoryMiB } = machine;
  const launch = driver.launch({ guest, imagePath, scratchPath, memoryMiB, vcpus: 1 }, folder);
  const args = launch.args.map((argument) =>
    launch.binds.reduce((text, bind) => text.replace(bind.inside, bind.outside), argument),
  );
  const sockets = await Promise.all(launch.sockets.map((path) => InheritedSocket.listen(path)));
  const startedMs = performance.now();
  const [command = '', ...rest] = args;
  const qemu = spawn(command, rest, {
    stdio: ['ignore', 'ignore', 'inherit', ...sockets.map(({ fd }) => fd)],
  });
  const ended = once(qemu, 'exit');
  await Promise.all(sockets.map((socket) => socket.publish()));
  const console = await driver.connectConsole(folder, 5_000);
  console.resume();
  const channel = new GuestChannel(await driver.connectChannel(folder, 5_000), {
    resumedProcesses: () => [],
    message: () => {},
  });
  await channel.ready;
  return {
    pid: qemu.pid ?? 0,
    bootMs: performance.now() - startedMs,
    stop: async () => {
      qemu.kill('SIGKILL');
      await ended;
      channel.close();
      console.destroy();
      await rm(folder, { recursive: true });
    },
  };
}

/** An OCI bundle of the image's files, for `runc run` and nothing else. */
export class RuncBundle {
  readonly #folder: string;
  #runs = 0;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** `rootfs`: an unpacked image. */
  static async make(rootfs: string, args: readonly string[]): Promise<RuncBundle> {
    const folder = await mkdtemp(join(tmpdir(), 'runc-bundle-'));
    await run('runc', ['spec', '--bundle', folder], { timeoutMs: 10_000 });
    const path = join(folder, 'config.json');
    const config = JSON.parse(await readFile(path, 'utf8'));
    config.process.terminal = false;
    config.process.args = args;
    config.root = { path: rootfs, readonly: true };
    config.linux.cgroupsPath = '/cloister-bench/runc';
    await writeFile(path, JSON.stringify(config));
    await mkdir(join(folder, 'state'));
    return new RuncBundle(folder);
  }

  /** From the exec of runc to the first byte that the container writes. */
  async firstByteMs(): Promise<number> {
    this.#runs += 1;
    const name = `bench-${process.pid}-${this.#runs}`;
    const startedMs = performance.now();
    const child: ChildProcess = spawn(
      'runc',
      ['--root', join(this.#folder, 'state'), 'run', '--bundle', this.#folder, name],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    const ended = once(child, 'exit');
    if (!child.stdout) throw new Error('no output');
    await once(child.stdout, 'data');
    const tookMs = performance.now() - startedMs;
    child.stdout.resume();
    await ended;
    return tookMs;
  }

  async remove(): Promise<void> {
    await rm(this.#folder, { recursive: true });
  }
}
