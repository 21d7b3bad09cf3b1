// One pull, from a reference to a block image: resolve, fetch, unpack, build. What containerd makes on the way is under
// leases of this pull, and they go with it, so a pull that fails or is cancelled leaves nothing.
import { randomBytes } from 'node:crypto';
import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { PullProgress } from '@cloister/model/image.ts';
import { buildBlockImage } from './block.ts';
import type { ParsedConfig } from './config.ts';
import type { ContainerdClient } from './containerd.ts';
import { ContainerdError, diskFull, isDiskFull } from './containerdError.ts';
import { fetchLayer } from './fetchLayer.ts';
import { Limiter } from './limiter.ts';
import type { Layer, Platform } from './manifest.ts';
import type { ImageRecord } from './records.ts';
import { parseReference, type Reference } from './reference.ts';
import { type RegistryOptions, Repository } from './registry.ts';
import { fetchConfig, type Resolved, resolve, uniqueLayers } from './resolve.ts';
import { SharedWork } from './shared.ts';
import { unpack } from './unpack.ts';

export type ProgressStep = Pick<PullProgress, 'stage' | 'fetchedBytes' | 'totalBytes'>;

export interface PullerOptions extends RegistryOptions {
  readonly client: ContainerdClient;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly blockPath: (digest: string) => string;
  readonly workFolder: string;
  readonly folder: string;
  readonly containerdFolder: string;
  readonly platform: Platform;
  readonly maxImageBytes: number;
  readonly minFreeBytes: number;
}

export interface PullContext {
  /** Of the first who wants it: its turn, and its credentials. */
  readonly group: string;
  readonly lease: string;
  readonly signal: AbortSignal;
  readonly report: (step: ProgressStep) => void;
}

export type NewImage = Omit<ImageRecord, 'references' | 'lastUsedAtMs'>;

const LAYERS_AT_ONCE = 3;
const BUILDS_AT_ONCE = 2;
/** Whichever comes first: a fast pull is told in steps, a slow one as it goes. */
const REPORT_EVERY_MS = 100;
const REPORT_EVERY_PART = 0.05;

export class Puller {
  readonly #options: PullerOptions;
  readonly #builds = new SharedWork<number>();
  readonly #buildLimiter = new Limiter(BUILDS_AT_ONCE);
  readonly #leases = new Set<string>();
  /** Of this process: ingestions of its repositories begin with it no longer than a pull runs. */
  readonly #origins = new Map<string, number>();

  constructor(options: PullerOptions) {
    this.#options = options;
  }

  /** `known`: what is on the node already. `keep` makes the record while the pull's own lease still holds; undefined when the block image is gone. */
  async pull(
    reference: Reference,
    context: PullContext,
    known: (digest: string) => ImageRecord | undefined,
    keep: (image: NewImage, pulledAs: string | undefined) => Promise<ImageRecord | undefined>,
  ): Promise<ImageRecord> {
    const { client, platform, maxImageBytes } = this.#options;
    const { lease, signal, report } = context;
    const repository = new Repository(reference, this.#options, context.group);
    report({ stage: 'resolving', fetchedBytes: 0, totalBytes: 0 });
    const resolved = await resolve(reference, repository, platform, signal);
    const layers = uniqueLayers(resolved.manifest.layers);
    const sizeBytes = layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
    if (sizeBytes > maxImageBytes) {
      throw new CloisterError(
        'image.too-large',
        `The image's layers have ${sizeBytes} bytes; the limit of this node is ${maxImageBytes}.`,
      );
    }
    const present = known(resolved.digest);
    if (present && (await this.#mayHave(present, reference, layers, repository, signal))) {
      const kept = await keep(present, repository.shownAs);
      if (kept) return kept;
    }
    const config = await fetchConfig(resolved.manifest, repository, platform, signal);
    this.#leases.add(lease);
    try {
      await client.createLease(lease);
      await this.#fetch(layers, sizeBytes, repository, context);
      const blockBytes = await this.#build(resolved, config, sizeBytes, context);
      const digests = layers.map(({ digest }) => digest);
      const image = { digest: resolved.digest, config: config.run, layers: digests, sizeBytes, blockBytes };
      const record = await keep(image, repository.shownAs);
      if (!record) throw new CloisterError('image.pull-failed', 'The image was removed while it was pulled.');
      report({ stage: 'done', fetchedBytes: sizeBytes, totalBytes: sizeBytes });
      return record;
    } catch (error) {
      throw signal.aborted ? signal.reason : explain(error);
    } finally {
      await this.#dropLease(lease);
      this.#leases.delete(lease);
    }
  }

  /** Removes ingestions and leases that no pull of this process has. */
  async dropAbandoned(): Promise<void> {
    const { client } = this.#options;
    const leases = (await client.listLeases()).filter(
      (id) => id.startsWith('pull-') && !this.#leases.has(id),
    );
    for (const id of leases) await client.deleteLease(id, true);
    const isRunning = (ref: string): boolean => this.#origins.has(ref.slice(0, ref.lastIndexOf('@')));
    const ingestions = (await client.listIngestions()).filter(({ ref }) => !isRunning(ref));
    for (const { ref } of ingestions) await client.abortIngestion(ref);
  }

  /** containerd looks for what a failed deletion left only when another snapshot was removed: so one is made for that. */
  async collectSnapshots(): Promise<void> {
    const { client } = this.#options;
    const lease = `build-${randomBytes(8).toString('hex')}`;
    await client.createLease(lease);
    await client.prepareSnapshot(lease, '', { lease });
    await client.removeSnapshot(lease);
    await client.deleteLease(lease, true);
  }

  /** Whoever knows a manifest could have made a registry that serves it. Its registry must have the layers as well. */
  async #mayHave(
    present: ImageRecord,
    reference: Reference,
    layers: readonly Layer[],
    repository: Repository,
    signal: AbortSignal,
  ): Promise<boolean> {
    const isSameRepository = present.references.some((entry) => {
      const other = parseReference(entry.reference);
      return other.registry === reference.registry && other.repository === reference.repository;
    });
    if (isSameRepository) return true;
    const limiter = new Limiter(LAYERS_AT_ONCE);
    const found = await Promise.all(
      layers.map(({ digest }) => limiter.run(async () => await repository.hasBlob(digest, signal), signal)),
    );
    if (found.every(Boolean)) return true;
    throw new CloisterError(
      'image.not-found',
      `${repository.name} has a manifest of layers that it does not have.`,
    );
  }

  async #fetch(
    layers: readonly Layer[],
    totalBytes: number,
    repository: Repository,
    context: PullContext,
  ): Promise<void> {
    await this.#checkDisk(totalBytes, 'the layers of the image');
    const { client, clock } = this.#options;
    const failed = new AbortController();
    const signal = AbortSignal.any([context.signal, failed.signal]);
    const reached = new Map<string, number>();
    let reported = { atMs: Number.NEGATIVE_INFINITY, bytes: 0 };
    const onBytes = (digest: string, bytes: number): void => {
      reached.set(digest, bytes);
      const fetchedBytes = [...reached.values()].reduce((sum, each) => sum + each, 0);
      const isStep = Math.abs(fetchedBytes - reported.bytes) >= totalBytes * REPORT_EVERY_PART;
      if (!isStep && clock.monotonic() - reported.atMs < REPORT_EVERY_MS) return;
      reported = { atMs: clock.monotonic(), bytes: fetchedBytes };
      context.report({ stage: 'fetching', fetchedBytes, totalBytes });
    };
    context.report({ stage: 'fetching', fetchedBytes: 0, totalBytes });
    const limiter = new Limiter(LAYERS_AT_ONCE);
    const origin = repository.name;
    this.#origins.set(origin, (this.#origins.get(origin) ?? 0) + 1);
    try {
      const fetches = layers.map((layer) =>
        limiter
          .run(async () => {
            const forLayer = {
              onBytes: (bytes: number) => onBytes(layer.digest, bytes),
              lease: context.lease,
              clock,
            };
            await fetchLayer(layer, { containerd: client, repository, origin, signal, ...forLayer });
          }, signal)
          .catch((error: unknown) => {
            failed.abort(error); // the others need not go on; the first failure is the one that all report
            throw error;
          }),
      );
      await Promise.allSettled(fetches); // every one has cleaned up before we say that it failed
      signal.throwIfAborted();
    } finally {
      const left = (this.#origins.get(origin) ?? 1) - 1;
      if (left > 0) this.#origins.set(origin, left);
      else this.#origins.delete(origin);
    }
    context.report({ stage: 'fetching', fetchedBytes: totalBytes, totalBytes });
  }

  /** Once a digest, however many want it: from here on nothing depends on where it came from. */
  async #build(
    resolved: Resolved,
    config: ParsedConfig,
    sizeBytes: number,
    context: PullContext,
  ): Promise<number> {
    const { client, maxImageBytes, workFolder, blockPath } = this.#options;
    const { digest, manifest } = resolved;
    const once = async (signal: AbortSignal): Promise<number> => {
      const id = randomBytes(8).toString('hex');
      const lease = `build-${id}`;
      await client.createLease(lease);
      try {
        for (const layer of manifest.layers) await client.addToLease(lease, 'content', layer.digest);
        const checkDisk = async (): Promise<void> => await this.#checkDisk(0, 'unpacking the image');
        context.report({ stage: 'unpacking', fetchedBytes: sizeBytes, totalBytes: sizeBytes });
        const mounts = await unpack(manifest.layers, config.diffIds, {
          containerd: client,
          lease,
          maxBytes: maxImageBytes,
          signal,
          checkDisk,
        });
        await checkDisk();
        context.report({ stage: 'building', fetchedBytes: sizeBytes, totalBytes: sizeBytes });
        const path = blockPath(digest);
        return await buildBlockImage({
          mounts,
          digest,
          path,
          workFolder: join(workFolder, id),
          maxBytes: maxImageBytes,
          signal,
        });
      } finally {
        await this.#dropLease(lease);
      }
    };
    const build = async (signal: AbortSignal): Promise<number> =>
      await this.#buildLimiter.run(async () => await once(signal), signal, context.group);
    return await this.#builds.do(digest, build, { signal: context.signal });
  }

  async #checkDisk(neededBytes: number, what: string): Promise<void> {
    for (const folder of [this.#options.folder, this.#options.containerdFolder]) {
      const { bavail, bsize } = await statfs(folder);
      const freeBytes = bavail * bsize;
      if (freeBytes - neededBytes < this.#options.minFreeBytes) {
        const cause = new Error(
          `${freeBytes} bytes are free, ${neededBytes} are needed, and ${this.#options.minFreeBytes} stay free`,
        );
        throw diskFull(what, cause);
      }
    }
  }

  /** With all that only it kept. A failure is logged: what remains goes when the store is opened, or is collected. */
  async #dropLease(lease: string): Promise<void> {
    try {
      await this.#options.client.deleteLease(lease, true);
    } catch (error) {
      this.#options.logger.warn({ err: error, lease }, 'could not delete a lease');
    }
  }
}

function explain(error: unknown): unknown {
  if (error instanceof CloisterError) return error;
  if (isDiskFull(error)) return diskFull('the image', error);
  const code = error instanceof ContainerdError ? 'image.pull-failed' : 'internal';
  return new CloisterError(code, `The image could not be pulled: ${describeError(error)}.`, { cause: error });
}
