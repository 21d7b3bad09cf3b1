// The images of a node: pulled once, kept as block images, given up when nobody needs them.
import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { type Logger, silentLogger } from '@cloister/kit/log.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import type { ImageConfig } from '@cloister/model/image.ts';
import { type CollectPolicy, chooseUnneeded } from './collect.ts';
import { ContainerdClient } from './containerd.ts';
import { ContainerdError } from './containerdError.ts';
import type { Platform } from './manifest.ts';
import { type NewImage, type ProgressStep, type PullContext, Puller } from './pull.ts';
import { PullQueue, type PullQueueOptions } from './pullQueue.ts';
import { hexOf, type ImageRecord, Records } from './records.ts';
import { formatReference, parseReference, type Reference } from './reference.ts';
import { credentialsFor, type RegistryOptions } from './registry.ts';
import { DiskReserve } from './reserve.ts';

export interface ImageStoreOptions extends RegistryOptions, PullQueueOptions {
  /** As a ContainerdProcess has them. */
  readonly containerd: { readonly socketPath: string; readonly rootFolder: string };
  /** Holds block images and records. Only one store may have it open. */
  readonly folder: string;
  /** When given, images of other registries are refused. As references name them: "docker.io", "HOST:PORT". */
  readonly allowedRegistries?: readonly string[];
  /** Of the compressed layers, of what they unpack to, and of the block image, each. Default 20 GiB. */
  readonly maxImageBytes?: number;
  /** Left free on the disks of `folder` and of containerd. Default 1 GiB. */
  readonly minFreeBytes?: number;
  /** Default: linux on this machine's architecture. */
  readonly platform?: Platform;
  readonly clock?: Clock;
  readonly logger?: Logger;
}

export interface PulledImage {
  /** Normalized. */
  readonly reference: string;
  /** Of the manifest for this node's platform. */
  readonly digest: string;
  readonly config: ImageConfig;
  readonly blockPath: string;
  /** Of its compressed layers. */
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly pulledAtMs: number;
}

export interface PullOptions {
  /** Asks the registry even when the reference is on the node: a tag may have moved. Default false: no network then. */
  readonly refresh?: boolean;
  /** For whom: a tenant's id. Groups take turns, and may have credentials. Default: one more group. */
  readonly group?: string;
  readonly onProgress?: (step: ProgressStep) => void;
  readonly signal?: AbortSignal;
}

/** Keeps an image from being given up. */
export interface ImageUse extends Disposable {
  readonly digest: string;
  readonly blockPath: string;
  readonly config: ImageConfig;
  release(): void;
}

const DEFAULT_MAX_IMAGE_BYTES = 20 * 1024 ** 3;
const DEFAULT_MIN_FREE_BYTES = 1024 ** 3;
/** What a killed agent's pulls left in containerd may be gone on with for this long. */
const ABANDONED_AFTER_MS = 3_600_000;
/** When an image was last used is written down no finer than this. */
const USE_RECORD_MS = 60_000;
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64', riscv64: 'riscv64' };

export class ImageStore {
  readonly #options: ImageStoreOptions;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #containerd: ContainerdClient;
  readonly #records: Records;
  readonly #puller: Puller;
  readonly #queue: PullQueue<ImageRecord>;
  readonly #reserve: DiskReserve;
  readonly #uses = new Map<string, number>();
  readonly #openedAtMs: number;
  #changing: Promise<void> = Promise.resolve();

  private constructor(
    options: ImageStoreOptions,
    containerd: ContainerdClient,
    records: Records,
    workFolder: string,
  ) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#logger = options.logger ?? silentLogger;
    this.#containerd = containerd;
    this.#records = records;
    this.#queue = new PullQueue(options);
    this.#reserve = new DiskReserve(options.containerd.rootFolder);
    this.#openedAtMs = this.#clock.monotonic();
    this.#puller = new Puller({
      ...options,
      client: containerd,
      clock: this.#clock,
      logger: this.#logger,
      blockPath: (digest) => records.blockPath(digest),
      workFolder,
      folder: options.folder,
      containerdFolder: options.containerd.rootFolder,
      platform: options.platform ?? {
        os: 'linux',
        architecture: ARCHITECTURES[process.arch] ?? process.arch,
      },
      maxImageBytes: options.maxImageBytes ?? DEFAULT_MAX_IMAGE_BYTES,
      minFreeBytes: options.minFreeBytes ?? DEFAULT_MIN_FREE_BYTES,
    });
  }

  /** Removes what a crash left half made. Throws when containerd does not answer. */
  static async open(options: ImageStoreOptions): Promise<ImageStore> {
    const workFolder = join(options.folder, 'work');
    await rm(workFolder, { recursive: true, force: true });
    await mkdir(workFolder, { recursive: true, mode: 0o700 });
    const records = await Records.open(join(options.folder, 'images'), options.logger ?? silentLogger);
    const containerd = new ContainerdClient(options.containerd.socketPath);
    try {
      await containerd.createNamespace();
      const kept = new Set(records.all().map(({ digest }) => imageLease(digest)));
      const stale = (await containerd.listLeases()).filter((id) => !id.startsWith('pull-') && !kept.has(id));
      for (const id of stale) await containerd.deleteLease(id, true);
    } catch (error) {
      containerd.close();
      if (!(error instanceof ContainerdError)) throw error;
      throw new CloisterError(
        'unavailable',
        `containerd at ${options.containerd.socketPath} does not serve.`,
        { cause: error },
      );
    }
    const store = new ImageStore(options, containerd, records, workFolder);
    await store.#reserve.fill();
    return store;
  }

  /**
   * The image is on this node when this returns. Concurrent pulls of one image share the work. Throws CloisterError
   * with an image.* code, 'node.disk-full', 'limit.exceeded', or the signal's reason; nothing half made is left.
   */
  async pull(text: string, options: PullOptions = {}): Promise<PulledImage> {
    options.signal?.throwIfAborted();
    const reference = parseReference(text);
    const name = formatReference(reference);
    if (this.#options.allowedRegistries?.includes(reference.registry) === false) {
      const message = `The operator of this node does not allow images from ${reference.registry}.`;
      throw new CloisterError('image.registry-unreachable', message);
    }
    const { group = '', refresh = false } = options;
    const username = credentialsFor(reference.registry, group, this.#options)?.username;
    const find = (): ImageRecord | undefined => (refresh ? undefined : this.#find(name, username));
    const present = find();
    if (present) return this.#describe(present, name);
    const queued = {
      ...{ name, key: JSON.stringify([name, username]), group, find },
      pull: async (signal: AbortSignal, report: (step: ProgressStep) => void) =>
        await this.#pull(reference, name, { signal, report, group }),
    };
    const record = await this.#queue.run(queued, options);
    return this.#describe(record, name);
  }

  /** Every reference that this node has an image of. */
  list(): PulledImage[] {
    return this.#records
      .all()
      .flatMap((record) => record.references.map(({ reference }) => this.#describe(record, reference)));
  }

  /** Throws 'image.not-found' when it is not, or no longer, on the node: pull it then. */
  use(digest: string): ImageUse {
    const record = this.#records.get(digest);
    if (!record) throw new CloisterError('image.not-found', `The image ${digest} is not on this node.`);
    this.#uses.set(digest, (this.#uses.get(digest) ?? 0) + 1);
    this.#noteUse(digest);
    let isReleased = false;
    const release = (): void => {
      if (isReleased) return;
      isReleased = true;
      const left = (this.#uses.get(digest) ?? 1) - 1;
      if (left > 0) this.#uses.set(digest, left);
      else this.#uses.delete(digest);
      this.#noteUse(digest);
    };
    const { config } = record;
    return { digest, blockPath: this.#records.blockPath(digest), config, release, [Symbol.dispose]: release };
  }

  /** Forgets a reference, and the image when it was its last. Throws 'image.not-found', or 'state.wrong' while it is used. */
  async remove(text: string): Promise<void> {
    const name = formatReference(parseReference(text));
    await this.#change(async () => {
      const record = this.#records.find(name);
      if (!record) throw new CloisterError('image.not-found', `The image ${name} is not on this node.`);
      const references = record.references.filter((entry) => entry.reference !== name);
      if (references.length > 0) return await this.#records.put({ ...record, references });
      if (this.#uses.has(record.digest))
        throw new CloisterError('state.wrong', `The image ${name} is used by a sandbox.`);
      await this.#drop(record);
    });
  }

  /** Drops what the policy says is not needed, and what long-gone pulls left in containerd. Gives the dropped digests. */
  async collect(policy: Omit<CollectPolicy, 'nowMs'>): Promise<string[]> {
    const dropped: string[] = [];
    await this.#change(async () => {
      const nowMs = this.#clock.now();
      const unneeded = chooseUnneeded(this.#records.all(), (digest) => this.#uses.has(digest), {
        ...policy,
        nowMs,
      });
      for (const record of unneeded) {
        if (this.#uses.has(record.digest)) continue; // since we chose
        await this.#drop(record);
        dropped.push(record.digest);
      }
    });
    if (this.#clock.monotonic() - this.#openedAtMs >= ABANDONED_AFTER_MS) await this.#puller.dropAbandoned();
    return dropped;
  }

  /** Cancels the pulls that run and waits for their end. containerd goes on; handles in use stay valid files. */
  async close(): Promise<void> {
    await this.#queue.close(new CloisterError('unavailable', 'The image store is closing.'));
    await this.#change(async () => {});
    this.#containerd.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** What a user of the registry (undefined: anybody) may have without asking it. */
  #find(name: string, username: string | undefined): ImageRecord | undefined {
    const record = this.#records.find(name);
    const pulledAs = record?.references.find(({ reference }) => reference === name)?.pulledAs;
    return pulledAs === undefined || pulledAs === username ? record : undefined;
  }

  async #pull(reference: Reference, name: string, context: Omit<PullContext, 'lease'>): Promise<ImageRecord> {
    try {
      const lease = `pull-${randomBytes(8).toString('hex')}`;
      return await this.#puller.pull(
        reference,
        { ...context, lease },
        (digest) => this.#records.get(digest),
        async (image, pulledAs) => await this.#keep(reference, name, image, pulledAs),
      );
    } catch (error) {
      if (error instanceof CloisterError && error.code === 'node.disk-full') await this.#makeRoom();
      throw error;
    }
  }

  async #makeRoom(): Promise<void> {
    try {
      await this.#reserve.spend(async () => await this.#puller.collectSnapshots());
    } catch (error) {
      this.#logger.warn({ err: error }, 'could not make room on a full disk');
    }
  }

  /** Records an image whose block image is there, and moves the reference to it. */
  async #keep(
    reference: Reference,
    name: string,
    image: NewImage,
    pulledAs: string | undefined,
  ): Promise<ImageRecord | undefined> {
    return await this.#change(async () => {
      if (!(await this.#records.hasBlock(image.digest))) return undefined; // dropped while we asked its registry
      const pulledAtMs = this.#clock.now();
      const lease = imageLease(image.digest);
      await this.#containerd.createLease(lease);
      for (const layer of image.layers) await this.#containerd.addToLease(lease, 'content', layer);
      const before = this.#records.find(name);
      const others = (this.#records.get(image.digest)?.references ?? []).filter(
        (entry) => entry.reference !== name,
      );
      const { digest, config, layers, sizeBytes, blockBytes } = image;
      const size = { sizeBytes, blockBytes };
      const record = {
        digest,
        config,
        layers,
        ...size,
        references: [
          ...others,
          { reference: name, pulledAtMs, ...(pulledAs === undefined ? {} : { pulledAs }) },
        ],
        lastUsedAtMs: pulledAtMs,
      };
      await this.#records.put(record);
      if (before && before.digest !== image.digest) await this.#orphan(before, reference, name);
      return record;
    });
  }

  /** A tag has moved away from this image: its digest still names it. */
  async #orphan(record: ImageRecord, moved: Reference, name: string): Promise<void> {
    const byDigest = formatReference({ ...moved, target: { digest: record.digest } });
    const references = record.references
      .map((entry) => (entry.reference === name ? { ...entry, reference: byDigest } : entry))
      .filter((entry, index, all) => all.findIndex((other) => other.reference === entry.reference) === index);
    await this.#records.put({ ...record, references });
  }

  async #drop(record: ImageRecord): Promise<void> {
    await this.#records.remove(record.digest);
    await this.#containerd.deleteLease(imageLease(record.digest), true);
    this.#logger.info({ digest: record.digest, bytes: record.blockBytes }, 'dropped an image');
  }

  #noteUse(digest: string): void {
    const record = this.#records.get(digest);
    const nowMs = this.#clock.now();
    if (!record || nowMs - record.lastUsedAtMs < USE_RECORD_MS) return;
    this.#change(async () => {
      const now = this.#records.get(digest);
      if (now) await this.#records.put({ ...now, lastUsedAtMs: nowMs });
    }).catch((error: unknown) =>
      this.#logger.warn({ err: error, digest }, 'could not record the use of an image'),
    );
  }

  /** Changes of records one after the other: each reads what the one before wrote. */
  #change<Value>(work: () => Promise<Value>): Promise<Value> {
    const result = this.#changing.then(work);
    this.#changing = result.then(
      () => {},
      () => {},
    );
    return result;
  }

  #describe(record: ImageRecord, reference: string): PulledImage {
    const { digest, config, sizeBytes, blockBytes } = record;
    const pulledAtMs = record.references.find((entry) => entry.reference === reference)?.pulledAtMs ?? 0;
    return {
      reference,
      digest,
      config,
      blockPath: this.#records.blockPath(digest),
      sizeBytes,
      blockBytes,
      pulledAtMs,
    };
  }
}

function imageLease(digest: string): string {
  return `image-${hexOf(digest)}`;
}
