// Images made on the spot, for tests: nothing is downloaded, and every byte is the test's choice.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { type TarEntry, writeTar } from './tar.ts';

export interface TestBlob {
  readonly bytes: Buffer;
  readonly digest: string;
  readonly mediaType: string;
}

export interface TestImage {
  readonly layers: readonly TestBlob[];
  readonly config: TestBlob;
  readonly manifest: TestBlob;
}

export interface ImageRecipe {
  /** Of a single layer; or give `layers`, the lowest first. */
  readonly files?: readonly TarEntry[];
  readonly layers?: readonly (readonly TarEntry[])[];
  /** The "config" of the image's configuration: Entrypoint, Cmd, Env, User, WorkingDir... */
  readonly config?: Readonly<Record<string, unknown>>;
  readonly compression?: 'none' | 'gzip' | 'zstd';
  /** Default: linux on this machine's architecture. */
  readonly platform?: { readonly os: string; readonly architecture: string; readonly variant?: string };
  /** Default 'oci'. */
  readonly format?: 'oci' | 'docker';
}

const TYPES = {
  oci: {
    manifest: 'application/vnd.oci.image.manifest.v1+json',
    index: 'application/vnd.oci.image.index.v1+json',
    config: 'application/vnd.oci.image.config.v1+json',
    none: 'application/vnd.oci.image.layer.v1.tar',
    gzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
    zstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
  },
  docker: {
    manifest: 'application/vnd.docker.distribution.manifest.v2+json',
    index: 'application/vnd.docker.distribution.manifest.list.v2+json',
    config: 'application/vnd.docker.container.image.v1+json',
    none: 'application/vnd.docker.image.rootfs.diff.tar',
    gzip: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
    zstd: 'application/vnd.docker.image.rootfs.diff.tar.zstd',
  },
} as const;

/** Debian's package busybox-static. */
const BUSYBOX = '/bin/busybox';
const APPLETS =
  'awk cat chmod chown chroot cp cut date dd df dmesg echo env false find free grep head hostname id ip kill ln ls mkdir mknod mount mv nc nproc ping printf ps pwd rm rmdir sed seq sh sha256sum sleep sort stat stty sync tail test time timeout top touch tr true tty umount uname unshare wc which yes';

export function buildImage(recipe: ImageRecipe): TestImage {
  const types = TYPES[recipe.format ?? 'oci'];
  const compression = recipe.compression ?? 'gzip';
  const tars = (recipe.layers ?? [recipe.files ?? []]).map(writeTar);
  const layers = tars.map((tar) => blob(compress(tar, compression), types[compression]));
  const config = blobOfJson(
    {
      ...(recipe.platform ?? { os: 'linux', architecture: process.arch === 'x64' ? 'amd64' : process.arch }),
      config: recipe.config ?? {},
      rootfs: { type: 'layers', diff_ids: tars.map(digestOf) },
    },
    types.config,
  );
  return { layers, config, manifest: buildManifest({ config, layers }, recipe.format) };
}

/** Of blobs that are there; for tests that want to lie about them. */
export function buildManifest(
  image: { readonly config: TestBlob; readonly layers: readonly TestBlob[] },
  format: 'oci' | 'docker' = 'oci',
): TestBlob {
  const types = TYPES[format];
  const manifest = {
    schemaVersion: 2,
    mediaType: types.manifest,
    config: descriptor(image.config),
    layers: image.layers.map(descriptor),
  };
  return blobOfJson(manifest, types.manifest);
}

export function buildIndex(
  entries: readonly { image: TestImage; platform: { os: string; architecture: string; variant?: string } }[],
  format: 'oci' | 'docker' = 'oci',
): TestBlob {
  const mediaType = TYPES[format].index;
  const manifests = entries.map(({ image, platform }) => ({ ...descriptor(image.manifest), platform }));
  return blobOfJson({ schemaVersion: 2, mediaType, manifests }, mediaType);
}

/** Debian's static busybox with its applets, a root's passwd and group, and /tmp. `extra` comes on top. */
export function busyboxFiles(extra: readonly TarEntry[] = []): TarEntry[] {
  const folder = (path: string, mode = 0o755): TarEntry => ({ path, type: 'folder', mode });
  return [
    ...['bin', 'dev', 'etc', 'proc', 'root', 'sys', 'usr', 'usr/bin', 'var'].map((path) => folder(path)),
    folder('tmp', 0o1777),
    { path: 'bin/busybox', mode: 0o755, content: readFileSync(BUSYBOX) },
    ...APPLETS.split(' ').map(
      (name): TarEntry => ({ path: `bin/${name}`, type: 'symlink', target: 'busybox' }),
    ),
    {
      path: 'etc/passwd',
      content: 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n',
    },
    { path: 'etc/group', content: 'root:x:0:\nnogroup:x:65534:\n' },
    ...extra,
  ];
}

/** The image that most tests want. */
export function buildBusyboxImage(recipe: Omit<ImageRecipe, 'layers'> = {}): TestImage {
  const config = { Cmd: ['sh'], Env: ['PATH=/bin:/usr/bin'], ...recipe.config };
  return buildImage({ ...recipe, config, files: busyboxFiles(recipe.files) });
}

export function digestOf(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

export function blob(bytes: Buffer, mediaType: string): TestBlob {
  return { bytes, mediaType, digest: digestOf(bytes) };
}

export function blobOfJson(document: unknown, mediaType: string): TestBlob {
  return blob(Buffer.from(JSON.stringify(document)), mediaType);
}

function descriptor({ mediaType, digest, bytes }: TestBlob): {
  mediaType: string;
  digest: string;
  size: number;
} {
  return { mediaType, digest, size: bytes.length };
}

function compress(tar: Buffer, compression: 'none' | 'gzip' | 'zstd'): Buffer {
  if (compression === 'gzip') return gzipSync(tar, { level: 1 });
  return compression === 'zstd' ? zstdCompressSync(tar) : tar;
}
