// The whole REST API as one table: the server registers its routes from it, validates by it and prints the OpenAPI
// document from it; the client takes its types from it. To add an endpoint, start here.
import Type, { type TSchema } from 'typebox';
import { EventSchema } from './event.ts';
import { ImageSchema, PullProgressSchema } from './image.ts';
import { AllocationSchema, JobSchema, JobSpecSchema, JobStateSchema } from './job.ts';
import { NodeSchema } from './node.ts';
import { LogLineSchema } from './stream.ts';
import {
  JoinReplySchema,
  JoinRequestSchema,
  JoinTokenRequestSchema,
  JoinTokenSchema,
  NewTokenSchema,
  TenantNameSchema,
  TenantSchema,
  TokenSchema,
  TokenScopeSchema,
} from './tenant.ts';

export interface Route {
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** With :parameters, as Fastify writes them. */
  readonly path: string;
  readonly summary: string;
  /** none: no credential; tenant: any valid token; operator: a token of that scope. */
  readonly access: 'none' | 'tenant' | 'operator';
  readonly params?: TSchema;
  readonly query?: TSchema;
  readonly body?: TSchema;
  /** Status of success and its body; `stream`: NDJSON of these objects; `websocket`: frames as in stream.ts. */
  readonly reply:
    | { readonly kind: 'json'; readonly status: 200 | 201 | 202; readonly schema: TSchema }
    | { readonly kind: 'empty' }
    | { readonly kind: 'stream'; readonly schema: TSchema }
    | { readonly kind: 'websocket' };
}

const json = <S extends TSchema>(schema: S, status: 200 | 201 | 202 = 200) =>
  ({ kind: 'json', status, schema }) as const;
const stream = <S extends TSchema>(schema: S) => ({ kind: 'stream', schema }) as const;

/** An id, or a name. Names and ids of other tenants are simply not found. */
const key = (name: string) =>
  Type.Object({ [name]: Type.String({ minLength: 1, maxLength: 64, pattern: '^[a-z0-9][a-z0-9_.-]*$' }) });
const Flag = Type.Boolean({ default: false });
const closed = { additionalProperties: false } as const;

export const JobWithAllocationsSchema = Type.Object({
  job: JobSchema,
  allocations: Type.Array(AllocationSchema),
});
const SignalBody = Type.Object({ signal: Type.Integer({ minimum: 1, maximum: 64, default: 9 }) }, closed);

export const API = {
  health: {
    method: 'GET',
    path: '/v1/health',
    summary: 'Is the control plane up?',
    access: 'none',
    reply: json(Type.Object({ status: Type.Literal('ok'), version: Type.String() })),
  },
  whoami: {
    method: 'GET',
    path: '/v1/whoami',
    summary: 'Whose token is this?',
    access: 'tenant',
    reply: json(Type.Object({ tenant: TenantSchema, scope: TokenScopeSchema })),
  },

  createJob: {
    method: 'POST',
    path: '/v1/jobs',
    summary: 'Run an image.',
    access: 'tenant',
    body: JobSpecSchema,
    reply: json(JobWithAllocationsSchema, 201),
  },
  listJobs: {
    method: 'GET',
    path: '/v1/jobs',
    summary: 'List jobs, newest first.',
    access: 'tenant',
    query: Type.Object({ state: Type.Optional(JobStateSchema) }, closed),
    reply: json(Type.Object({ jobs: Type.Array(JobWithAllocationsSchema) })),
  },
  getJob: {
    method: 'GET',
    path: '/v1/jobs/:job',
    summary: 'A job and its allocations.',
    access: 'tenant',
    params: key('job'),
    reply: json(JobWithAllocationsSchema),
  },
  stopJob: {
    method: 'POST',
    path: '/v1/jobs/:job/stop',
    summary: 'End a job: its stop signal, the grace, then a kill.',
    access: 'tenant',
    params: key('job'),
    body: Type.Object({ graceMs: Type.Optional(Type.Integer({ minimum: 0, maximum: 600_000 })) }, closed),
    reply: json(JobWithAllocationsSchema, 202),
  },
  killJob: {
    method: 'POST',
    path: '/v1/jobs/:job/kill',
    summary: 'End a job at once: its machines are killed.',
    access: 'tenant',
    params: key('job'),
    reply: json(JobWithAllocationsSchema, 202),
  },
  signalJob: {
    method: 'POST',
    path: '/v1/jobs/:job/signal',
    summary: 'Send a signal to the first process of every running instance.',
    access: 'tenant',
    params: key('job'),
    body: SignalBody,
    reply: { kind: 'empty' },
  },
  removeJob: {
    method: 'DELETE',
    path: '/v1/jobs/:job',
    summary: 'Remove a job that ended, with its logs.',
    access: 'tenant',
    params: key('job'),
    query: Type.Object(
      { force: Type.Optional(Type.Boolean({ default: false, description: 'Kill it first.' })) },
      closed,
    ),
    reply: { kind: 'empty' },
  },

  listAllocations: {
    method: 'GET',
    path: '/v1/allocations',
    summary: 'List allocations, newest first.',
    access: 'tenant',
    query: Type.Object({ job: Type.Optional(Type.String({ maxLength: 64 })) }, closed),
    reply: json(Type.Object({ allocations: Type.Array(AllocationSchema) })),
  },
  getAllocation: {
    method: 'GET',
    path: '/v1/allocations/:allocation',
    summary: 'An allocation.',
    access: 'tenant',
    params: key('allocation'),
    query: Type.Object(
      {
        waitVersion: Type.Optional(
          Type.Integer({
            minimum: 0,
            description: 'Answer when the version is higher than this, or after 30 s.',
          }),
        ),
      },
      closed,
    ),
    reply: json(AllocationSchema),
  },
  logs: {
    method: 'GET',
    path: '/v1/allocations/:allocation/logs',
    summary: 'Output of the workload.',
    access: 'tenant',
    params: key('allocation'),
    query: Type.Object(
      {
        follow: Type.Optional(Flag),
        tailBytes: Type.Optional(Type.Integer({ minimum: 0, maximum: 1_073_741_824 })),
        tailLines: Type.Optional(Type.Integer({ minimum: 0, maximum: 1_000_000 })),
        sinceMs: Type.Optional(Type.Integer({ minimum: 0 })),
      },
      closed,
    ),
    reply: stream(LogLineSchema),
  },
  attach: {
    method: 'GET',
    path: '/v1/allocations/:allocation/attach',
    summary:
      "The workload's output from its first byte, with back-pressure, and its input. Waits for the start.",
    access: 'tenant',
    params: key('allocation'),
    query: Type.Object({ stdin: Type.Optional(Flag) }, closed),
    reply: { kind: 'websocket' },
  },
  exec: {
    method: 'GET',
    path: '/v1/allocations/:allocation/exec',
    summary: 'Run one more process in a running allocation.',
    access: 'tenant',
    params: key('allocation'),
    reply: { kind: 'websocket' },
  },

  events: {
    method: 'GET',
    path: '/v1/events',
    summary: "What happened to this tenant's objects (for an operator: to nodes too).",
    access: 'tenant',
    query: Type.Object(
      { after: Type.Optional(Type.Integer({ minimum: 0 })), follow: Type.Optional(Flag) },
      closed,
    ),
    reply: stream(EventSchema),
  },

  listNodes: {
    method: 'GET',
    path: '/v1/nodes',
    summary: 'List the machines.',
    access: 'operator',
    reply: json(Type.Object({ nodes: Type.Array(NodeSchema) })),
  },
  getNode: {
    method: 'GET',
    path: '/v1/nodes/:node',
    summary: 'A machine.',
    access: 'operator',
    params: key('node'),
    reply: json(NodeSchema),
  },
  cordonNode: {
    method: 'POST',
    path: '/v1/nodes/:node/cordon',
    summary: 'Place no more work on a machine.',
    access: 'operator',
    params: key('node'),
    reply: json(NodeSchema),
  },
  uncordonNode: {
    method: 'POST',
    path: '/v1/nodes/:node/uncordon',
    summary: 'Place work on a machine again.',
    access: 'operator',
    params: key('node'),
    reply: json(NodeSchema),
  },
  removeNode: {
    method: 'DELETE',
    path: '/v1/nodes/:node',
    summary: 'Forget a machine that is down; its certificate is refused from now on.',
    access: 'operator',
    params: key('node'),
    reply: { kind: 'empty' },
  },
  createJoinToken: {
    method: 'POST',
    path: '/v1/join-tokens',
    summary: 'A token with which one machine can join, once.',
    access: 'operator',
    body: JoinTokenRequestSchema,
    reply: json(JoinTokenSchema, 201),
  },
  join: {
    method: 'POST',
    path: '/v1/join',
    summary: 'Join as a machine: a join token for a certificate.',
    access: 'none',
    body: JoinRequestSchema,
    reply: json(JoinReplySchema, 201),
  },

  listImages: {
    method: 'GET',
    path: '/v1/images',
    summary: 'Images that the nodes have.',
    access: 'tenant',
    reply: json(Type.Object({ images: Type.Array(ImageSchema) })),
  },
  pullImage: {
    method: 'POST',
    path: '/v1/images/pull',
    summary: 'Pull an image to one node, or to all workers.',
    access: 'tenant',
    body: Type.Object(
      {
        reference: Type.String({ minLength: 1, maxLength: 512 }),
        node: Type.Optional(Type.String({ maxLength: 64 })),
      },
      closed,
    ),
    reply: stream(PullProgressSchema),
  },

  listTenants: {
    method: 'GET',
    path: '/v1/tenants',
    summary: 'List tenants.',
    access: 'operator',
    reply: json(Type.Object({ tenants: Type.Array(TenantSchema) })),
  },
  createTenant: {
    method: 'POST',
    path: '/v1/tenants',
    summary: 'Make a tenant.',
    access: 'operator',
    body: Type.Object({ name: TenantNameSchema }, closed),
    reply: json(TenantSchema, 201),
  },
  createToken: {
    method: 'POST',
    path: '/v1/tenants/:tenant/tokens',
    summary: 'Make a token for a tenant.',
    access: 'operator',
    params: key('tenant'),
    body: Type.Object(
      { scope: Type.Optional(TokenScopeSchema), ttlMs: Type.Optional(Type.Integer({ minimum: 1000 })) },
      closed,
    ),
    reply: json(NewTokenSchema, 201),
  },
  revokeToken: {
    method: 'DELETE',
    path: '/v1/tokens/:token',
    summary: 'Revoke a token.',
    access: 'operator',
    params: key('token'),
    reply: { kind: 'empty' },
  },
  listTokens: {
    method: 'GET',
    path: '/v1/tenants/:tenant/tokens',
    summary: 'Tokens of a tenant, without their secrets.',
    access: 'operator',
    params: key('tenant'),
    reply: json(Type.Object({ tokens: Type.Array(TokenSchema) })),
  },
} as const satisfies Record<string, Route>;

export type ApiName = keyof typeof API;

/** RFC 9457. `type` is "urn:cloister:error:CODE". */
export const ProblemSchema = Type.Object({
  type: Type.String(),
  title: Type.String(),
  status: Type.Integer(),
  detail: Type.String({ description: 'What was tried and why it failed.' }),
  code: Type.String(),
  hint: Type.String({ description: 'What to do next.' }),
  errors: Type.Optional(Type.Array(Type.Object({ path: Type.String(), message: Type.String() }))),
});
