// A reference to the one manifest and configuration that are for this node, each checked against its digest.
import { createHash } from 'node:crypto';
import { CloisterError } from '@cloister/model/errors.ts';
import { type ParsedConfig, parseConfig } from './config.ts';
import {
  ACCEPTED_TYPES,
  choosePlatform,
  formatPlatform,
  type Layer,
  MAX_DOCUMENT_BYTES,
  type Manifest,
  type Platform,
  parseManifest,
  platformFits,
  platformMissing,
  unsupported,
} from './manifest.ts';
import type { Reference } from './reference.ts';
import type { Repository } from './registry.ts';

export interface Resolved {
  /** Of the manifest for this platform, whatever the reference named. */
  readonly digest: string;
  readonly manifest: Manifest;
}

/** Throws 'image.not-found', 'image.unauthorized', 'image.registry-unreachable', 'image.digest-mismatch', 'image.platform-missing', 'image.unsupported'. */
export async function resolve(
  reference: Reference,
  repository: Repository,
  platform: Platform,
  signal: AbortSignal,
): Promise<Resolved> {
  const named = 'tag' in reference.target ? reference.target.tag : reference.target.digest;
  const top = await fetchManifest(named, 'tag' in reference.target ? undefined : named);
  if (top.document.kind === 'manifest') return { digest: top.digest, manifest: top.document };
  const chosen = choosePlatform(top.document, platform);
  const { document } = await fetchManifest(chosen.digest, chosen.digest);
  if (document.kind !== 'manifest') throw unsupported('its index points to another index');
  return { digest: chosen.digest, manifest: document };

  async function fetchManifest(name: string, expected: string | undefined) {
    const fetched = await repository.fetchDocument(
      `manifests/${name}`,
      ACCEPTED_TYPES,
      MAX_DOCUMENT_BYTES,
      signal,
    );
    const digest = digestOf(fetched.bytes);
    if (expected !== undefined && digest !== expected) throw mismatch('manifest', expected, digest);
    return { digest, document: parseManifest(fetched.bytes, fetched.contentType) };
  }
}

/** The configuration of a manifest. Throws as resolve() does: one manifest for all platforms says here what it is for. */
export async function fetchConfig(
  manifest: Manifest,
  repository: Repository,
  platform: Platform,
  signal: AbortSignal,
): Promise<ParsedConfig> {
  const { digest: expected, sizeBytes } = manifest.config;
  if (sizeBytes > MAX_DOCUMENT_BYTES)
    throw unsupported(`its configuration is longer than ${MAX_DOCUMENT_BYTES} bytes`);
  const { bytes } = await repository.fetchDocument(`blobs/${expected}`, '*/*', MAX_DOCUMENT_BYTES, signal);
  const digest = digestOf(bytes);
  if (digest !== expected) throw mismatch('configuration', expected, digest);
  const config = parseConfig(bytes, manifest);
  if (!platformFits(config.platform, platform))
    throw platformMissing(platform, [formatPlatform(config.platform)]);
  return config;
}

/** An image may have one layer several times; it is fetched once. */
export function uniqueLayers(layers: readonly Layer[]): Layer[] {
  const byDigest = new Map<string, Layer>();
  for (const layer of layers) {
    const same = byDigest.get(layer.digest);
    if (same && same.sizeBytes !== layer.sizeBytes)
      throw unsupported(`its manifest gives layer ${layer.digest} two sizes`);
    byDigest.set(layer.digest, layer);
  }
  return [...byDigest.values()];
}

function digestOf(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

function mismatch(what: string, expected: string, digest: string): CloisterError {
  return new CloisterError(
    'image.digest-mismatch',
    `The registry gave a ${what} with the digest ${digest} for ${expected}.`,
  );
}
