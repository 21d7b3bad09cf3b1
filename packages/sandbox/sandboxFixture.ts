// For tests: a node's sandboxes in a temporary folder, with an image of busybox, and their agent's restarts.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { chmod, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { ImageConfig } from '@cloister/model/image.ts';
import { type JobSpec, JobSpecSchema } from '@cloister/model/job.ts';
import Value from 'typebox/value';
import { makeImage } from '../../guest/test/image.ts';
import { hostTscKhz } from './hostTsc.ts';
import { builtGuest, JailFixture } from './jailFixture.ts';
import { QemuDriver } from './qemu.ts';
import { prepareQemuRoot } from './qemuRoot.ts';
import type { Sandbox, SandboxState } from './sandbox.ts';
import { Sandboxes, type SandboxesOptions } from './sandboxes.ts';
import type { VmmDriver } from './vmm.ts';

const IMAGE_FILES = {
  'etc/passwd': { text: 'root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000::/home/guest:/bin/sh\n' },
  'etc/group': { text: 'root:x:0:\nguest:x:1000:\n' },
  'etc/plain': { text: 'not a program\n' },
};

const RESOURCES = { cpuMilli: 1000, memoryMiB: 128, diskMiB: 64 };

const IMAGE_CONFIG: ImageConfig = {
  entrypoint: [],
  cmd: ['/bin/sh'],
  env: ['PATH=/bin'],
  user: '',
  workingDir: '',
  stopSignal: '',
  volumes: [],
};

export class SandboxFixture implements AsyncDisposable {
  readonly jails: JailFixture;
  readonly #options: Omit<SandboxesOptions, 'onChange'>;
  readonly #imagePath: string;
  #watchers: (() => void)[] = [];
  sandboxes: Sandboxes;

  private constructor(jails: JailFixture, options: Omit<SandboxesOptions, 'onChange'>, imagePath: string) {
    this.jails = jails;
    this.#options = options;
    this.#imagePath = imagePath;
    this.sandboxes = undefined as unknown as Sandboxes; // open() sets it
  }

  static async open(options: Partial<SandboxesOptions> = {}): Promise<SandboxFixture> {
    const jails = await JailFixture.open();
    const imagePath = join(jails.folder, 'image');
    makeImage(imagePath, 'erofs', IMAGE_FILES);
    await chmod(imagePath, 0o644);
    await chmod(jails.folder, 0o755);
    const root = await prepareQemuRoot(jails.folder, 'tcg');
    const fixture = new SandboxFixture(
      jails,
      {
        statePath: jails.folder,
        jails: jails.jails,
        guest: builtGuest,
        driver: new QemuDriver({ acceleration: 'tcg', rootPath: root.path, tscKhz: await hostTscKhz() }),
        parentCgroupPath: jails.parentCgroupPath,
        uids: { first: 1_800_000_000 + randomBytes(2).readUInt16LE() * 16, count: 16 },
        ...options,
      },
      imagePath,
    );
    await fixture.reopen();
    return fixture;
  }

  /** As a new agent does: finds what is there. */
  async reopen(options: Partial<SandboxesOptions> = {}): Promise<void> {
    await this.sandboxes?.close();
    this.sandboxes = await Sandboxes.open({ ...this.#options, ...options, onChange: () => this.#changed() });
  }

  get driver(): VmmDriver {
    return this.#options.driver;
  }

  #changed(): void {
    for (const wake of this.#watchers.splice(0)) wake();
  }

  create(command: readonly string[], spec: object = {}, config: Partial<ImageConfig> = {}): Sandbox {
    return this.sandboxes.create({
      id: `alc-${randomBytes(6).toString('hex')}`,
      image: { digest: 'sha256:0', blockPath: this.#imagePath, config: { ...IMAGE_CONFIG, ...config } },
      // Not checked against the schema: what the API would refuse must not harm a node either.
      spec: Value.Default(JobSpecSchema, {
        image: 'busybox',
        command,
        resources: RESOURCES,
        ...spec,
      }) as JobSpec,
      hostname: 'box',
      timeline: {},
    });
  }

  shell(script: string, spec: object = {}): Sandbox {
    return this.create(['/bin/sh', '-c', script], spec);
  }

  async until<Phase extends SandboxState['phase']>(
    sandbox: Sandbox,
    phase: Phase,
  ): Promise<Extract<SandboxState, { phase: Phase }>> {
    for (;;) {
      const { state } = sandbox;
      if (state.phase === phase) return state as Extract<SandboxState, { phase: Phase }>;
      if (state.phase === 'failed' || state.phase === 'exited')
        assert.fail(`it never got ${phase}: ${JSON.stringify(state)}`);
      await new Promise<void>((resolve) => this.#watchers.push(resolve));
    }
  }

  /** Its whole output; waits for the end of it. */
  async output(sandbox: Sandbox, fd: 1 | 2 = 1): Promise<Buffer> {
    const parts: Buffer[] = [];
    for await (const record of sandbox.output.read({ follow: true, pin: true })) {
      if (!('bytes' in record)) assert.fail('a gap');
      if (record.fd === fd) parts.push(Buffer.from(record.bytes));
    }
    return Buffer.concat(parts);
  }

  /** Waits until the output has this in it; for what goes on. */
  async outputHas(sandbox: Sandbox, text: string): Promise<void> {
    let seen = '';
    for await (const record of sandbox.output.read({ follow: true, pin: true })) {
      if ('bytes' in record) seen += record.bytes.toString('latin1');
      if (seen.includes(text)) return;
    }
    assert.fail(`the output ended without ${JSON.stringify(text)}: ${JSON.stringify(seen.slice(-500))}`);
  }

  /** Whatever a sandbox that ended should not have left. */
  async leftOf(sandbox: Sandbox): Promise<string[]> {
    const folder = join(this.jails.folder, 'sandboxes', sandbox.id);
    const cgroupPath = `${this.jails.parentCgroupPath}/${sandbox.id}`;
    const left = await this.jails.leftOf({ id: sandbox.id, folder, cgroupPath });
    const files = (await readdir(folder)).filter((name) => name === 'scratch' || name === 'run');
    return [...left, ...files];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.sandboxes.all().map(({ id }) => this.sandboxes.remove(id)));
    await this.sandboxes.close();
    await this.jails[Symbol.asyncDispose]();
  }
}
