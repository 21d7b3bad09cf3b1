// One layer from a registry into containerd's content store: goes on after broken connections where it was, and is
// there in the end only with the right size and digest.
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { backoffMs } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { status } from '@grpc/grpc-js';
import type { ContainerdClient } from './containerd.ts';
import { ContainerdError } from './containerdError.ts';
import type { Layer } from './manifest.ts';
import type { Repository } from './registry.ts';
import { TransientError } from './transport.ts';

export interface FetchContext {
  readonly containerd: ContainerdClient;
  readonly repository: Repository;
  /** Distinguishes ingestions of one layer from several places: a slow registry must not hold up another. */
  readonly origin: string;
  readonly lease: string;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
  /** Called with how far this layer is. Goes back when a registry cannot go on in the middle. */
  readonly onBytes: (bytes: number) => void;
}

/** Attempts without a single new byte between them. */
const MAX_FRUITLESS_ATTEMPTS = 4;
const MAX_ATTEMPTS = 50;
const FIRST_BACKOFF_MS = 200;
const MAX_BACKOFF_MS = 5000;

/** Throws 'image.digest-mismatch' and whatever the registry gives reason to; then nothing of the layer is left. */
export async function fetchLayer(layer: Layer, context: FetchContext): Promise<void> {
  const { containerd, lease, signal, repository } = context;
  await containerd.addToLease(lease, 'content', layer.digest);
  const present = await containerd.contentInfo(layer.digest, { signal });
  if (present && present.size === layer.sizeBytes && (await repository.hasBlob(layer.digest, signal))) {
    // Asked all the same: knowing a digest must not be enough to get at another's layer that this node has.
    context.onBytes(layer.sizeBytes);
    return;
  }
  if (present) throw await explainPresent(layer, present.size, repository, signal);
  const ref = `${context.origin}@${layer.digest}`;
  try {
    await fetchWithRetries(ref, layer, context);
  } catch (error) {
    await containerd.abortIngestion(ref).catch(() => {}); // the first failure is the one to tell
    throw signal.aborted ? signal.reason : error;
  }
}

async function fetchWithRetries(ref: string, layer: Layer, context: FetchContext): Promise<void> {
  const clock = context.clock ?? systemClock;
  let reached = 0;
  let fruitless = 0;
  for (let attempt = 1; ; attempt++) {
    try {
      await fetchOnce(ref, layer, {
        ...context,
        onBytes: (bytes) => {
          if (bytes > reached) {
            reached = bytes;
            fruitless = 0;
          }
          context.onBytes(bytes);
        },
      });
      return;
    } catch (error) {
      context.signal.throwIfAborted();
      const isBusy = error instanceof ContainerdError && error.code === status.UNAVAILABLE; // our last stream is still closing
      if (!(error instanceof TransientError || isBusy)) throw error;
      if (fruitless >= MAX_FRUITLESS_ATTEMPTS || attempt >= MAX_ATTEMPTS) throw error;
      await clock.sleep(backoffMs(fruitless, FIRST_BACKOFF_MS, MAX_BACKOFF_MS), context.signal);
      fruitless += 1;
    }
  }
}

async function fetchOnce(ref: string, layer: Layer, context: FetchContext): Promise<void> {
  const { containerd, repository, lease, signal, onBytes } = context;
  const ingestion = containerd.ingest(ref, layer.digest, layer.sizeBytes, { lease });
  const cancel = (): void => ingestion.close();
  signal.addEventListener('abort', cancel, { once: true });
  try {
    const begun = await ingestion.begin();
    if (begun === 'committed') {
      // Another pull was faster. Registries that break off until then must not be given what they do not have.
      if (!(await repository.hasBlob(layer.digest, signal)))
        throw await explainPresent(layer, layer.sizeBytes, repository, signal);
      onBytes(layer.sizeBytes);
      return;
    }
    let offset = begun;
    if (offset < layer.sizeBytes) {
      const blob = await repository.openBlob(layer.digest, offset, signal);
      let position = blob.offset;
      for await (const chunk of blob.body) {
        signal.throwIfAborted();
        if (position + chunk.length > layer.sizeBytes)
          throw mismatch(layer, 'is longer than its manifest says');
        const fresh = chunk.subarray(Math.max(0, offset - position)); // bytes that we have, from one without ranges
        position += chunk.length;
        if (fresh.length === 0) continue;
        offset = await ingestion.write(offset, fresh);
        onBytes(offset);
      }
    }
    if (offset < layer.sizeBytes) {
      throw new TransientError(
        'image.pull-failed',
        `Layer ${layer.digest} ended after ${offset} of ${layer.sizeBytes} bytes.`,
      );
    }
    if (!(await ingestion.commit())) throw mismatch(layer, 'has other bytes than its digest names');
    onBytes(layer.sizeBytes);
  } finally {
    signal.removeEventListener('abort', cancel);
    ingestion.close();
  }
}

async function explainPresent(
  layer: Layer,
  size: number,
  repository: Repository,
  signal: AbortSignal,
): Promise<CloisterError> {
  if (size !== layer.sizeBytes)
    return mismatch(layer, `has ${size} bytes, and its manifest says ${layer.sizeBytes}`);
  signal.throwIfAborted();
  return new CloisterError(
    'image.not-found',
    `Layer ${layer.digest} is not in ${repository.name}, which its manifest says it is.`,
  );
}

function mismatch(layer: Layer, why: string): CloisterError {
  return new CloisterError('image.digest-mismatch', `Layer ${layer.digest} ${why}.`);
}
