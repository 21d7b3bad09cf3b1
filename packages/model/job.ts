// A job: what a tenant submits. An allocation: one instance of it, on a node.
import Type, { type Static } from 'typebox';
import { AllocationIdSchema, JobIdSchema, NodeIdSchema, TenantIdSchema } from './ids.ts';
import { ReasonSchema, TimeSchema } from './schema.ts';

/** Bounds of one sandbox. The API refuses what is outside them; nodes bound it further by what they have. */
export const LIMITS = {
  cpuMilli: { min: 50, max: 64_000, default: 1000 },
  memoryMiB: { min: 96, max: 262_144, default: 256 },
  diskMiB: { min: 16, max: 1_048_576, default: 1024 },
  count: { min: 1, max: 1000 },
  stopGraceMs: { min: 0, max: 600_000, default: 10_000 },
} as const;

const NameSchema = Type.String({
  pattern: '^[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?$',
  maxLength: 63,
  description: 'Unique among the jobs of a tenant. Lower-case letters, digits, and _ . - inside.',
});

const WordSchema = Type.String({ maxLength: 65_536, pattern: '^[^\\u0000]*$' });

export const ResourcesSchema = Type.Object(
  {
    cpuMilli: Type.Integer({
      minimum: LIMITS.cpuMilli.min,
      maximum: LIMITS.cpuMilli.max,
      default: LIMITS.cpuMilli.default,
      description: 'Thousandths of a CPU.',
    }),
    memoryMiB: Type.Integer({
      minimum: LIMITS.memoryMiB.min,
      maximum: LIMITS.memoryMiB.max,
      default: LIMITS.memoryMiB.default,
      description: 'Memory of the machine, its kernel included.',
    }),
    diskMiB: Type.Integer({
      minimum: LIMITS.diskMiB.min,
      maximum: LIMITS.diskMiB.max,
      default: LIMITS.diskMiB.default,
      description: 'Size of the scratch disk over the image.',
    }),
  },
  { additionalProperties: false },
);
export type Resources = Static<typeof ResourcesSchema>;

export const JobSpecSchema = Type.Object(
  {
    name: Type.Optional(NameSchema),
    kind: Type.Union([Type.Literal('batch'), Type.Literal('service')], {
      default: 'batch',
      description: 'batch: runs to completion; service: kept running.',
    }),
    image: Type.String({ minLength: 1, maxLength: 512, description: '[REGISTRY/]NAME[:TAG|@DIGEST]' }),
    entrypoint: Type.Optional(
      Type.Array(WordSchema, {
        maxItems: 1024,
        description: "Replaces the image's Entrypoint; its Cmd is then dropped, as Docker does.",
      }),
    ),
    command: Type.Optional(
      Type.Array(WordSchema, { maxItems: 4096, description: "Replaces the image's Cmd." }),
    ),
    env: Type.Record(Type.String({ pattern: '^[^=\\u0000]{1,256}$' }), WordSchema, {
      additionalProperties: false,
      default: {},
      maxProperties: 1024,
      description: "Added to, and before, the image's Env.",
    }),
    user: Type.Optional(
      Type.String({
        maxLength: 128,
        pattern: '^[^\\u0000]*$',
        description: "Replaces the image's User: NAME|UID[:GROUP|GID].",
      }),
    ),
    workingDir: Type.Optional(Type.String({ maxLength: 4096, pattern: '^/[^\\u0000]*$' })),
    hostname: Type.Optional(
      Type.String({
        maxLength: 63,
        pattern: '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$',
        description: "Default: the job's name or the allocation's short id.",
      }),
    ),
    tty: Type.Boolean({ default: false, description: 'Give the workload a terminal.' }),
    stdin: Type.Boolean({
      default: false,
      description: 'Keep standard input open for "attach". Otherwise it is at its end from the start.',
    }),
    resources: Type.Unsafe<Resources>({ ...ResourcesSchema, default: {} }),
    count: Type.Integer({ minimum: LIMITS.count.min, maximum: LIMITS.count.max, default: 1 }),
    stopGraceMs: Type.Integer({
      minimum: LIMITS.stopGraceMs.min,
      maximum: LIMITS.stopGraceMs.max,
      default: LIMITS.stopGraceMs.default,
      description: 'From the stop signal to the kill.',
    }),
    removeWhenDone: Type.Boolean({
      default: false,
      description:
        'Remove the job, its allocations and logs once all instances ended and nobody is attached.',
    }),
    labels: Type.Record(
      Type.String({ pattern: '^[a-zA-Z0-9][a-zA-Z0-9./_-]{0,62}$' }),
      Type.String({ maxLength: 256 }),
      { additionalProperties: false, default: {}, maxProperties: 64 },
    ),
    nodeLabels: Type.Record(
      Type.String({ pattern: '^[a-zA-Z0-9][a-zA-Z0-9./_-]{0,62}$' }),
      Type.String({ maxLength: 256 }),
      {
        additionalProperties: false,
        default: {},
        maxProperties: 16,
        description: 'Only nodes that have all of these labels.',
      },
    ),
  },
  { additionalProperties: false },
);
export type JobSpec = Static<typeof JobSpecSchema>;

/**
 * active: has, or should have, instances that are not ended; stopping: asked to stop;
 * done: all instances ended (batch), or stopped.
 */
export const JobStateSchema = Type.Union([
  Type.Literal('active'),
  Type.Literal('stopping'),
  Type.Literal('done'),
]);

export const JobSchema = Type.Object({
  id: JobIdSchema,
  tenantId: TenantIdSchema,
  name: Type.String(),
  spec: JobSpecSchema,
  state: JobStateSchema,
  createdAt: TimeSchema,
  version: Type.Integer({ description: 'Grows with each change.' }),
});
export type Job = Static<typeof JobSchema>;

/**
 * pending: no node yet; placed: given to a node; pulling, starting: the node says so; running;
 * exited: the workload ended, with exitCode or signal; failed: never ran, or its machine broke, see reason;
 * lost: its node went away with it.
 */
export const ALLOCATION_STATES = [
  'pending',
  'placed',
  'pulling',
  'starting',
  'running',
  'exited',
  'failed',
  'lost',
] as const;
export const AllocationStateSchema = Type.Union(ALLOCATION_STATES.map((state) => Type.Literal(state)));
export type AllocationState = (typeof ALLOCATION_STATES)[number];

export const isEnded = (state: AllocationState): boolean =>
  state === 'exited' || state === 'failed' || state === 'lost';

/** Milliseconds since the Unix epoch at which the stage was over, by the node's clock; accepted and placed by the server's. */
export const TimelineSchema = Type.Object(
  {
    acceptedAt: Type.Optional(TimeSchema),
    placedAt: Type.Optional(TimeSchema),
    receivedAt: Type.Optional(TimeSchema),
    imageReadyAt: Type.Optional(TimeSchema),
    jailReadyAt: Type.Optional(TimeSchema),
    bootedAt: Type.Optional(TimeSchema),
    startedAt: Type.Optional(TimeSchema),
    firstOutputAt: Type.Optional(TimeSchema),
    endedAt: Type.Optional(TimeSchema),
  },
  { additionalProperties: false },
);
export type Timeline = Static<typeof TimelineSchema>;

/** What ends an allocation: nothing yet; stop: StopSignal, grace, kill; kill: at once. */
export const DesiredSchema = Type.Union([Type.Literal('run'), Type.Literal('stop'), Type.Literal('kill')]);
export type Desired = Static<typeof DesiredSchema>;

export const AllocationSchema = Type.Object({
  id: AllocationIdSchema,
  jobId: JobIdSchema,
  tenantId: TenantIdSchema,
  index: Type.Integer({ minimum: 0, description: 'Which instance of the job.' }),
  attempt: Type.Integer({ minimum: 0, description: 'How often this instance was started again before.' }),
  nodeId: Type.Optional(NodeIdSchema),
  state: Type.Unsafe<AllocationState>(AllocationStateSchema),
  desired: DesiredSchema,
  exitCode: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: 255,
      description: 'Of the workload; 128 + N when signal N ended it.',
    }),
  ),
  signal: Type.Optional(Type.Integer({ minimum: 1, maximum: 64 })),
  oomKilled: Type.Optional(Type.Boolean()),
  reason: Type.Optional(ReasonSchema),
  imageDigest: Type.Optional(Type.String()),
  timeline: TimelineSchema,
  createdAt: TimeSchema,
  version: Type.Integer(),
});
export type Allocation = Static<typeof AllocationSchema>;
