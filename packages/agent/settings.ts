// What an operator may set for a node: the agent's configuration file, with defaults, units and bounds.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseJson } from '@cloister/link/json.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { NodeNameSchema } from '@cloister/model/node.ts';
import Type, { type Static } from 'typebox';
import Value from 'typebox/value';

const closed = { additionalProperties: false } as const;
const PathSchema = Type.String({ pattern: '^/', maxLength: 1024 });
const RegistriesSchema = Type.Array(Type.String({ minLength: 1, maxLength: 300 }), {
  default: [],
  maxItems: 64,
});

/** The configuration file, JSON. */
export const SettingsSchema = Type.Object(
  {
    stateFolder: Type.Unsafe<string>({
      ...PathSchema,
      description: 'Everything that this node keeps. One agent a folder.',
    }),
    guestFolder: Type.Unsafe<string>({ ...PathSchema, description: 'The guest as `make guest` builds it.' }),
    apiUrl: Type.String({ pattern: '^https://', maxLength: 300, description: 'Where to join.' }),
    caFile: Type.Unsafe<string>({
      ...PathSchema,
      description: "The cluster's authority, brought here beforehand.",
    }),
    joinTokenFile: Type.Optional(
      Type.Unsafe<string>({
        ...PathSchema,
        description: 'Read while the node has not joined, and removed when it has.',
      }),
    ),
    nodeName: NodeNameSchema,
    labels: Type.Record(Type.String(), Type.String(), { default: {}, maxProperties: 64 }),
    insecureRegistries: Type.Unsafe<string[]>({
      ...RegistriesSchema,
      description: 'HOST:PORT of registries that are spoken to over plain HTTP, wherever they are.',
    }),
    internalRegistries: Type.Unsafe<string[]>({
      ...RegistriesSchema,
      description: 'HOST[:PORT] of registries that may have addresses inside the network.',
    }),
    allowedRegistries: Type.Optional(
      Type.Array(Type.String({ minLength: 1, maxLength: 300 }), {
        maxItems: 64,
        description: 'When given, images come from these only. As in references: "docker.io", "HOST:PORT".',
      }),
    ),
    credentialsFile: Type.Optional(
      Type.Unsafe<string>({
        ...PathSchema,
        description: 'JSON, mode 0600: {"HOST": {"username", "password", "tenants"?}}.',
      }),
    ),
    containerdFolder: Type.Optional(
      Type.Unsafe<string>({
        ...PathSchema,
        maxLength: 80,
        description: 'Default: "containerd" in the state folder.',
      }),
    ),
    cgroupPath: Type.Optional(
      Type.String({
        pattern: '^(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$',
        maxLength: 200,
        description: 'Parent of the cgroups of the sandboxes. Default: /cloister/NODENAME.',
      }),
    ),
    reserved: Type.Object(
      {
        cpuMilli: Type.Integer({ minimum: 0, default: 0 }),
        memoryMiB: Type.Integer({ minimum: 0, default: 1024 }),
        diskMiB: Type.Integer({ minimum: 0, default: 4096 }),
      },
      { ...closed, default: {}, description: 'Kept from work, for the system and the agent.' },
    ),
    maxSandboxes: Type.Integer({ minimum: 1, maximum: 60_000, default: 100 }),
    firstUid: Type.Integer({
      minimum: 100_000,
      maximum: 4_000_000_000,
      default: 1_000_000_000,
      description: 'The first of twice as many users and groups as sandboxes, used by nothing else here.',
    }),
    maxImageBytes: Type.Integer({ minimum: 1, default: 20 * 1024 ** 3, description: 'Of one image.' }),
    imageKeepMs: Type.Integer({
      minimum: 0,
      default: 7 * 86_400_000,
      description: 'Unused images stay this long.',
    }),
    imagesMaxBytes: Type.Integer({
      minimum: 0,
      default: 50 * 1024 ** 3,
      description: 'Of all: unused ones go beyond it.',
    }),
    bootTimeoutMs: Type.Integer({ minimum: 100, maximum: 600_000, default: 60_000 }),
    fenceAfterMs: Type.Integer({
      minimum: 0,
      maximum: 86_400_000,
      default: 0,
      description: 'Without a session for this long, services are ended (fence.ts says why). 0: never.',
    }),
    outputLimits: Type.Object(
      {
        segmentBytes: Type.Integer({ minimum: 65_536, default: 4 * 1_048_576 }),
        maxSegments: Type.Integer({ minimum: 2, maximum: 1024, default: 16 }),
      },
      { ...closed, default: {}, description: 'Of the output that is kept of each sandbox.' },
    ),
  },
  closed,
);
export type Settings = Static<typeof SettingsSchema>;

/** Checks settings and fills in defaults. Throws `request.invalid` that names the field. */
export function readSettings(given: unknown): Settings {
  return parseJson(SettingsSchema, JSON.stringify(Value.Default(SettingsSchema, given)), 'the settings');
}

export async function readSettingsFile(path: string | undefined): Promise<Settings> {
  if (!path)
    throw new CloisterError(
      'request.invalid',
      'Name a configuration file (packages/agent/settings.ts says what is in it).',
    );
  let given: unknown;
  try {
    given = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    throw new CloisterError('request.invalid', `Could not read the configuration file ${path}`, {
      cause: error,
    });
  }
  return readSettings(given);
}

export const cgroupPathOf = (settings: Settings): string =>
  settings.cgroupPath ?? `/cloister/${settings.nodeName}`;

export const containerdFolderOf = (settings: Settings): string =>
  settings.containerdFolder ?? join(settings.stateFolder, 'containerd');
