// Layers in the content store to snapshots, one on the other, under a lease. What another image left or is making is
// used: a snapshot's name is a digest of all that went into it.
import { randomBytes } from 'node:crypto';
import { CloisterError } from '@cloister/model/errors.ts';
import { chainIds } from './config.ts';
import type { ContainerdClient, Mount } from './containerd.ts';
import { ContainerdError } from './containerdError.ts';
import type { Layer } from './manifest.ts';

export interface UnpackContext {
  readonly containerd: ContainerdClient;
  readonly lease: string;
  /** Of all layers together. */
  readonly maxBytes: number;
  readonly signal: AbortSignal;
  /** Throws when the disk is getting full. Called while a layer is unpacked. */
  readonly checkDisk: () => Promise<void>;
}

const MEDIA_TYPES = {
  none: 'application/vnd.oci.image.layer.v1.tar',
  gzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  zstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
} as const;
const WATCH_EVERY_MS = 500;

/** The mounts of a read-only view of all layers. Throws 'image.digest-mismatch', 'image.too-large', 'image.unsupported'. */
export async function unpack(
  layers: readonly Layer[],
  diffIds: readonly string[],
  context: UnpackContext,
): Promise<readonly Mount[]> {
  const { containerd, lease, signal } = context;
  const chain = chainIds(diffIds);
  let parent = '';
  let unpackedBytes = 0;
  for (const [index, layer] of layers.entries()) {
    const name = chain[index] ?? '';
    await containerd.addToLease(lease, 'snapshot', name);
    if (!(await containerd.hasSnapshot(name, { signal }))) {
      await unpackLayer(
        layer,
        diffIds[index] ?? '',
        { name, parent, roomBytes: context.maxBytes - unpackedBytes },
        context,
      );
    }
    unpackedBytes += await containerd.snapshotBytes(name, { signal });
    if (unpackedBytes > context.maxBytes) throw tooLarge(context.maxBytes);
    parent = name;
  }
  return await containerd.viewSnapshot(`view-${randomBytes(8).toString('hex')}`, parent, { lease, signal });
}

async function unpackLayer(
  layer: Layer,
  diffId: string,
  snapshot: { name: string; parent: string; roomBytes: number },
  context: UnpackContext,
): Promise<void> {
  const { containerd, lease, signal } = context;
  const key = `unpack-${randomBytes(8).toString('hex')}`;
  const mounts = await containerd.prepareSnapshot(key, snapshot.parent, { lease, signal });
  const watch = watchGrowth(key, snapshot.roomBytes, context);
  try {
    const descriptor = {
      mediaType: MEDIA_TYPES[layer.compression],
      digest: layer.digest,
      size: layer.sizeBytes,
    };
    const applied = await containerd.applyLayer(descriptor, mounts, { lease, signal: watch.signal });
    if (applied !== diffId) {
      throw new CloisterError(
        'image.digest-mismatch',
        `Layer ${layer.digest} unpacks to ${applied}, and the image's configuration says ${diffId}.`,
      );
    }
    if (!(await containerd.commitSnapshot(snapshot.name, key, { lease, signal })))
      await containerd.removeSnapshot(key);
  } catch (error) {
    await containerd.removeSnapshot(key).catch(() => {}); // the first failure is the one to tell
    throw explain(error, layer);
  } finally {
    await watch.stop();
  }
}

/** A few megabytes can unpack to terabytes: looks while it grows, and aborts the returned signal with why. */
function watchGrowth(
  key: string,
  roomBytes: number,
  context: UnpackContext,
): { signal: AbortSignal; stop: () => Promise<void> } {
  const tooMuch = new AbortController();
  let checking: Promise<void> | undefined;
  const check = async (): Promise<void> => {
    try {
      await context.checkDisk();
      if ((await context.containerd.snapshotBytes(key)) > roomBytes) throw tooLarge(context.maxBytes);
    } catch (error) {
      if (error instanceof CloisterError) tooMuch.abort(error); // else it was committed meanwhile
    }
    checking = undefined;
  };
  const timer = setInterval(() => {
    checking ??= check();
  }, WATCH_EVERY_MS);
  const stop = async (): Promise<void> => {
    clearInterval(timer);
    await checking;
  };
  return { signal: AbortSignal.any([context.signal, tooMuch.signal]), stop };
}

function explain(error: unknown, layer: Layer): unknown {
  if (!(error instanceof ContainerdError) || /no space left|quota exceeded/i.test(error.message))
    return error;
  return new CloisterError(
    'image.unsupported',
    `Layer ${layer.digest} cannot be unpacked: ${error.message}.`,
    { cause: error },
  );
}

function tooLarge(maxBytes: number): CloisterError {
  return new CloisterError(
    'image.too-large',
    `The image unpacks to more than ${maxBytes} bytes, the limit of this node.`,
  );
}
