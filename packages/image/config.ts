// An image's configuration: what it says about running it, and which layers unpacked make it up.
import { createHash } from 'node:crypto';
import type { ImageConfig } from '@cloister/model/image.ts';
import Type from 'typebox';
import { checker, type Manifest, type Platform, parseJson, unsupported } from './manifest.ts';

export interface ParsedConfig {
  readonly platform: Platform;
  /** Digests of the uncompressed layers, the lowest first. */
  readonly diffIds: readonly string[];
  readonly run: ImageConfig;
}

const nullable = <Schema extends Type.TSchema>(schema: Schema) =>
  Type.Optional(Type.Union([schema, Type.Null()]));
/** Without NUL: no argument, variable or path of a process can have one. */
const text = (maxLength: number) => Type.String({ maxLength, pattern: '^[^\\u0000]*$' });
const WordsSchema = Type.Array(text(131_072), { maxItems: 4096 });

const checkConfig = checker(
  Type.Object({
    os: Type.String({ maxLength: 64 }),
    architecture: Type.String({ maxLength: 64 }),
    variant: nullable(Type.String({ maxLength: 64 })),
    rootfs: Type.Object({
      type: Type.Literal('layers'),
      diff_ids: nullable(Type.Array(Type.String({ pattern: '^sha256:[a-f0-9]{64}$' }), { maxItems: 127 })),
    }),
    config: nullable(
      Type.Object({
        Entrypoint: nullable(WordsSchema),
        Cmd: nullable(WordsSchema),
        Env: nullable(WordsSchema),
        User: nullable(text(256)),
        WorkingDir: nullable(text(4096)),
        StopSignal: nullable(Type.String({ pattern: '^[A-Za-z0-9+-]{0,32}$' })),
        Volumes: nullable(Type.Record(text(4096), Type.Unknown(), { maxProperties: 128 })),
      }),
    ),
  }),
);

/** Throws 'image.unsupported' when it is malformed, out of bounds, or does not fit the manifest. */
export function parseConfig(bytes: Buffer, manifest: Manifest): ParsedConfig {
  const document = checkConfig(parseJson(bytes, 'configuration'), 'configuration');
  const diffIds = document.rootfs.diff_ids ?? [];
  if (diffIds.length !== manifest.layers.length) {
    throw unsupported(
      `its configuration names ${diffIds.length} layers and its manifest ${manifest.layers.length}`,
    );
  }
  const { os, architecture, variant, config } = document;
  return {
    platform: { os, architecture, ...(variant ? { variant } : {}) },
    diffIds,
    run: {
      entrypoint: config?.Entrypoint ?? [],
      cmd: config?.Cmd ?? [],
      env: (config?.Env ?? []).filter((entry) => entry.indexOf('=') > 0), // a process cannot have the others
      user: config?.User ?? '',
      workingDir: config?.WorkingDir ?? '',
      stopSignal: config?.StopSignal ?? '',
      volumes: Object.keys(config?.Volumes ?? {})
        .map(checkVolume)
        .sort(),
    },
  };
}

/** The names of the snapshots that the layers make, one on the other: each depends on all that are below it. */
export function chainIds(diffIds: readonly string[]): string[] {
  const chain: string[] = [];
  for (const diffId of diffIds) {
    const below = chain.at(-1);
    chain.push(
      below === undefined
        ? diffId
        : `sha256:${createHash('sha256').update(`${below} ${diffId}`).digest('hex')}`,
    );
  }
  return chain;
}

function checkVolume(path: string): string {
  if (!path.startsWith('/') || path.split('/').includes('..')) {
    throw unsupported(`its volume "${path.slice(0, 100)}" is not an absolute path without ".."`);
  }
  return path;
}
