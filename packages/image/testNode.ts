// A node's image part for tests: a containerd and a store in a folder of their own, and ways to look at what is left.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ContainerdClient } from './containerd.ts';
import { ContainerdProcess } from './containerdProcess.ts';
import { ImageStore, type ImageStoreOptions } from './images.ts';
import { PrivateMounts } from './privateMount.ts';

export class TestNode {
  readonly folder: string;
  readonly containerd: ContainerdProcess;
  /** Of every store: tests' registries are on loopback, and begin after the store. */
  readonly insecureRegistries: string[] = [];
  readonly #stores: ImageStore[] = [];

  private constructor(folder: string, containerd: ContainerdProcess) {
    this.folder = folder;
    this.containerd = containerd;
  }

  static async start(containerdFolder?: string): Promise<TestNode> {
    const folder = await mkdtemp(join(tmpdir(), 'cloister-node-'));
    return new TestNode(
      folder,
      await ContainerdProcess.open({ folder: containerdFolder ?? join(folder, 'containerd') }),
    );
  }

  /** Lists a registry of this test's, and its token server, as an operator would. */
  trust<Registry extends { readonly host: string; readonly tokenHost?: string | undefined }>(
    registry: Registry,
  ): Registry {
    this.insecureRegistries.push(registry.host, ...(registry.tokenHost ? [registry.tokenHost] : []));
    return registry;
  }

  /** Each with a folder of its own unless one is given. */
  async store(options: Partial<ImageStoreOptions> = {}): Promise<ImageStore> {
    const { containerd, insecureRegistries } = this;
    const folder = join(this.folder, `store-${this.#stores.length}`);
    const store = await ImageStore.open({
      ...{ containerd, folder, insecureRegistries, minFreeBytes: 0 },
      ...options,
    });
    this.#stores.push(store);
    return store;
  }

  /** All that containerd holds for us. */
  async held(): Promise<{ content: string[]; ingestions: string[]; snapshots: string[]; leases: string[] }> {
    const client = new ContainerdClient(this.containerd.socketPath);
    try {
      return {
        content: (await client.listContent()).map(({ digest }) => digest),
        ingestions: (await client.listIngestions()).map(({ ref }) => ref),
        snapshots: await client.listSnapshots(),
        leases: await client.listLeases(),
      };
    } finally {
      client.close();
    }
  }

  async assertNothingLeft(storeFolder: string): Promise<void> {
    assert.deepEqual(await this.held(), { content: [], ingestions: [], snapshots: [], leases: [] });
    assert.deepEqual(await readdir(join(storeFolder, 'images')), []);
    assert.deepEqual(await readdir(join(storeFolder, 'work')), []);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const store of this.#stores) await store.close();
    await this.containerd.stop();
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** A block image, mounted where only its own methods see it. */
export class OpenBlock implements AsyncDisposable {
  readonly #mounts: PrivateMounts;
  readonly #folder: string;

  private constructor(mounts: PrivateMounts, folder: string) {
    this.#mounts = mounts;
    this.#folder = folder;
  }

  static async open(blockPath: string): Promise<OpenBlock> {
    const folder = await mkdtemp(join(tmpdir(), 'cloister-block-'));
    await mkdir(join(folder, 'tree'));
    const block = new OpenBlock(await PrivateMounts.open(), folder);
    await block.run('mount', ['-t', 'erofs', '-o', 'ro,loop', blockPath, join(folder, 'tree')]);
    return block;
  }

  /** "/path" to find's `format` of it ("%y %m" is type and mode). */
  async list(format: string): Promise<Map<string, string>> {
    const output = await this.run('find', [
      join(this.#folder, 'tree'),
      '-mindepth',
      '1',
      '-printf',
      `/%P\\0${format}\\0`,
    ]);
    const parts = output.split('\0');
    return new Map(
      parts.slice(0, -1).flatMap((part, at) => (at % 2 === 0 ? [[part, parts[at + 1] ?? ''] as const] : [])),
    );
  }

  path(path: string): string {
    return join(this.#folder, 'tree', path);
  }

  async read(path: string): Promise<string> {
    return await this.run('cat', [this.path(path)]);
  }

  async xattr(path: string, name: string): Promise<string> {
    const program = 'import os, sys; sys.stdout.write(os.getxattr(sys.argv[1], sys.argv[2]).hex())';
    return Buffer.from(await this.run('python3', ['-c', program, this.path(path), name]), 'hex').toString(
      'latin1',
    );
  }

  async run(command: string, args: readonly string[]): Promise<string> {
    const result = await this.#mounts.runUnchecked(command, args, {
      timeoutMs: 30_000,
      maxOutputBytes: 1_048_576,
    });
    assert.equal(result.exitCode, 0, result.stderr);
    return result.stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#mounts.close();
    await rm(this.#folder, { recursive: true });
  }
}
