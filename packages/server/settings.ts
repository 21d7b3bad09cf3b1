// What an operator may set, with defaults, units and bounds; and what the parts of the server share.
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { parseJson } from '@cloister/link/json.ts';
import Type, { type Static } from 'typebox';
import Value from 'typebox/value';
import type { Committer } from './commit.ts';
import type { Follower } from './follow.ts';

const closed = { additionalProperties: false } as const;

const EndpointSchema = Type.Object(
  {
    host: Type.String({ default: '127.0.0.1', description: 'Address to listen on.' }),
    port: Type.Integer({ minimum: 0, maximum: 65_535, description: '0: any free one.' }),
  },
  closed,
);

/** The configuration file, JSON. */
export const SettingsSchema = Type.Object(
  {
    dataDir: Type.String({
      minLength: 1,
      description: 'Everything the server keeps: the store and its authority.',
    }),
    api: EndpointSchema,
    link: EndpointSchema,
    names: Type.Array(Type.String({ minLength: 1, maxLength: 253 }), {
      default: ['localhost', '127.0.0.1', '::1'],
      maxItems: 64,
      description:
        'Host names and addresses under which clients and agents reach this server: its certificate has them.',
    }),
    linkAdvertise: Type.Optional(
      Type.String({
        description: "host:port that joining agents are told. Default: the first name, and the link's port.",
      }),
    ),
    operatorTokenFile: Type.Optional(
      Type.String({
        description: "Where the first start writes an operator's token. Default: DATADIR/operator.token.",
      }),
    ),
    nodeDownAfterMs: Type.Integer({
      minimum: 100,
      maximum: 3_600_000,
      default: 30_000,
      description: "From the loss of a node's session until its work is given up.",
    }),
    heartbeatIntervalMs: Type.Integer({
      minimum: 100,
      maximum: 60_000,
      default: 5_000,
      description: 'Three missed end a session.',
    }),
    serviceBackoffMs: Type.Integer({
      minimum: 10,
      maximum: 300_000,
      default: 1_000,
      description:
        'Before an ended instance of a service is started again; doubles with each attempt, up to 5 minutes.',
    }),
    maxJobsPerTenant: Type.Integer({ minimum: 1, default: 10_000 }),
    maxJobBytesPerTenant: Type.Integer({
      minimum: 1,
      default: 67_108_864,
      description: 'All specifications of its jobs together, as JSON.',
    }),
    maxAllocationsPerTenant: Type.Integer({
      minimum: 1,
      default: 20_000,
      description: 'Those that ended count until their job is removed: all are in memory.',
    }),
    maxStreamsPerTenant: Type.Integer({
      minimum: 1,
      default: 256,
      description: 'Attaches, execs, logs, pulls, event streams and long polls at once.',
    }),
    keepEvents: Type.Integer({
      minimum: 10,
      maximum: 1_000_000,
      default: 10_000,
      description: "The newest this many of each tenant's, and of the cluster's own.",
    }),
  },
  closed,
);
export type Settings = Static<typeof SettingsSchema>;

/** What every part of the server is given. */
export interface Cluster {
  readonly settings: Settings;
  readonly follower: Follower;
  readonly committer: Committer;
  readonly clock: Clock;
  readonly logger: Logger;
}

/** Checks settings and fills in defaults. Throws `request.invalid` that names the field. */
export function readSettings(given: unknown): Settings {
  return parseJson(SettingsSchema, JSON.stringify(Value.Default(SettingsSchema, given)), 'the settings');
}
