// An image's documents: the index of its platforms, its manifest, its configuration. All come from a registry that
// may be hostile: checked against schemas, bounded, and only what is used is kept.
import { CloisterError } from '@cloister/model/errors.ts';
import Type, { type Static, type TSchema } from 'typebox';
import { Compile } from 'typebox/compile';

/** Of an index, a manifest or a configuration. */
export const MAX_DOCUMENT_BYTES = 4 * 1_048_576;
/** Docker's limit. */
export const MAX_LAYERS = 127;

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  /** Of the architecture ("v7", "v8"). Undefined takes any. */
  readonly variant?: string;
}

export type Compression = 'none' | 'gzip' | 'zstd';

export interface Layer {
  readonly digest: string;
  readonly sizeBytes: number;
  readonly compression: Compression;
}

export interface Manifest {
  readonly kind: 'manifest';
  readonly config: { readonly digest: string; readonly sizeBytes: number };
  /** The lowest first. */
  readonly layers: readonly Layer[];
}

export interface Index {
  readonly kind: 'index';
  readonly manifests: readonly {
    readonly digest: string;
    readonly sizeBytes: number;
    readonly platform: Platform;
  }[];
}

const INDEX_TYPES = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
];
const MANIFEST_TYPES = [
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.v2+json',
];
const CONFIG_TYPES = [
  'application/vnd.oci.image.config.v1+json',
  'application/vnd.docker.container.image.v1+json',
];
const LAYER_TYPES: ReadonlyMap<string, Compression> = new Map([
  ['application/vnd.oci.image.layer.v1.tar', 'none'],
  ['application/vnd.oci.image.layer.v1.tar+gzip', 'gzip'],
  ['application/vnd.oci.image.layer.v1.tar+zstd', 'zstd'],
  ['application/vnd.docker.image.rootfs.diff.tar', 'none'],
  ['application/vnd.docker.image.rootfs.diff.tar.gzip', 'gzip'],
  ['application/vnd.docker.image.rootfs.diff.tar.zstd', 'zstd'],
]);

/** What we tell a registry that we take. */
export const ACCEPTED_TYPES = [...INDEX_TYPES, ...MANIFEST_TYPES].join(', ');

const DigestSchema = Type.String({ pattern: '^sha256:[a-f0-9]{64}$' });
const TypeNameSchema = Type.String({ maxLength: 256 });
const WordSchema = Type.String({ maxLength: 256 });
const DescriptorSchema = Type.Object({
  mediaType: TypeNameSchema,
  digest: DigestSchema,
  size: Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }),
});

const HeadSchema = Type.Object({ schemaVersion: Type.Integer(), mediaType: Type.Optional(TypeNameSchema) });
const ManifestSchema = Type.Object({
  config: DescriptorSchema,
  layers: Type.Array(DescriptorSchema, { maxItems: 4096 }),
});
const IndexSchema = Type.Object({
  manifests: Type.Array(
    Type.Intersect([
      DescriptorSchema,
      Type.Object({
        platform: Type.Optional(
          Type.Object({ os: WordSchema, architecture: WordSchema, variant: Type.Optional(WordSchema) }),
        ),
      }),
    ]),
    { maxItems: 1024 },
  ),
});

const checkHead = checker(HeadSchema);
const checkManifest = checker(ManifestSchema);
const checkIndex = checker(IndexSchema);

/** `contentType`: what the registry called it, for documents that do not say it themselves. */
export function parseManifest(bytes: Buffer, contentType: string): Manifest | Index {
  const document = parseJson(bytes, 'manifest');
  const head = checkHead(document, 'manifest');
  if (head.schemaVersion !== 2) {
    throw unsupported(`its manifest is of schema version ${head.schemaVersion}; only version 2 is taken`);
  }
  const mediaType = head.mediaType ?? contentType.split(';')[0]?.trim() ?? '';
  if (INDEX_TYPES.includes(mediaType)) return asIndex(checkIndex(document, 'index'));
  if (MANIFEST_TYPES.includes(mediaType)) return asManifest(checkManifest(document, 'manifest'));
  throw unsupported(`its manifest is of the type "${mediaType.slice(0, 100)}"`);
}

/** The manifest of an index that is for this platform. Throws 'image.platform-missing', naming what there is. */
export function choosePlatform(index: Index, wanted: Platform): { digest: string; sizeBytes: number } {
  const fitting = index.manifests.filter(({ platform }) => platformFits(platform, wanted));
  const chosen = fitting.find(({ platform }) => platform.variant === wanted.variant) ?? fitting[0];
  if (chosen) return chosen;
  const there = index.manifests
    .map(({ platform }) => formatPlatform(platform))
    .filter((name) => name !== 'unknown/unknown');
  throw platformMissing(wanted, there);
}

export function platformFits(platform: Platform, wanted: Platform): boolean {
  return (
    platform.os === wanted.os &&
    platform.architecture === wanted.architecture &&
    (wanted.variant === undefined || platform.variant === undefined || platform.variant === wanted.variant)
  );
}

export function platformMissing(wanted: Platform, there: readonly string[]): CloisterError {
  const list = there.slice(0, 20).join(', ') || 'none';
  return new CloisterError(
    'image.platform-missing',
    `The image is not there for ${formatPlatform(wanted)}; its platforms: ${list}.`,
  );
}

export function formatPlatform({ os, architecture, variant }: Platform): string {
  return [os, architecture, ...(variant ? [variant] : [])].join('/');
}

export function unsupported(why: string): CloisterError {
  return new CloisterError('image.unsupported', `The image cannot be used: ${why}.`);
}

/** A function that gives the value back as what the schema says, or throws 'image.unsupported' naming the first field that is wrong. */
export function checker<Schema extends TSchema>(
  schema: Schema,
): (value: unknown, what: string) => Static<Schema> {
  const validator = Compile(schema);
  return (value, what) => {
    if (validator.Check(value)) return value;
    const first = validator.Errors(value)[0];
    throw unsupported(
      `its ${what} is malformed at "${first?.instancePath ?? ''}": ${first?.message ?? 'wrong'}`.slice(
        0,
        300,
      ),
    );
  };
}

export function parseJson(bytes: Buffer, what: string): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new CloisterError('image.unsupported', `The image cannot be used: its ${what} is not JSON.`, {
      cause: error,
    });
  }
}

function asIndex(document: Static<typeof IndexSchema>): Index {
  const manifests = document.manifests
    .filter(({ mediaType }) => MANIFEST_TYPES.includes(mediaType))
    .map(({ digest, size, platform }) => ({
      digest,
      sizeBytes: size,
      platform: platform ?? { os: 'unknown', architecture: 'unknown' },
    }));
  return { kind: 'index', manifests };
}

function asManifest({ config, layers }: Static<typeof ManifestSchema>): Manifest {
  if (!CONFIG_TYPES.includes(config.mediaType)) {
    throw unsupported(`it is not a container image but "${config.mediaType.slice(0, 100)}"`);
  }
  if (layers.length > MAX_LAYERS)
    throw unsupported(`it has ${layers.length} layers, and ${MAX_LAYERS} is the limit`);
  return {
    kind: 'manifest',
    config: { digest: config.digest, sizeBytes: config.size },
    layers: layers.map(({ mediaType, digest, size }) => {
      const compression = LAYER_TYPES.get(mediaType);
      if (!compression) throw unsupported(`it has a layer of the type "${mediaType.slice(0, 100)}"`);
      return { digest, sizeBytes: size, compression };
    }),
  };
}
