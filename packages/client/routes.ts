// Method and path of every route, and the types of what goes in and comes out, derived from the API table.
//
// The table itself is imported as a type only: its schemas cost a command-line program more start-up time (0.15 s)
// than everything else together. The compiler holds this copy to the table: a route that is missing, or differs in
// one letter, does not compile.
import type { API, ApiName } from '@cloister/model/api.ts';
import type { JobSpec, Resources } from '@cloister/model/job.ts';
import type { ExecSpec } from '@cloister/model/stream.ts';
import type { Static, TSchema } from 'typebox';

type Table = typeof API;

export const ROUTES = {
  health: { method: 'GET', path: '/v1/health' },
  whoami: { method: 'GET', path: '/v1/whoami' },
  createJob: { method: 'POST', path: '/v1/jobs' },
  listJobs: { method: 'GET', path: '/v1/jobs' },
  getJob: { method: 'GET', path: '/v1/jobs/:job' },
  stopJob: { method: 'POST', path: '/v1/jobs/:job/stop' },
  killJob: { method: 'POST', path: '/v1/jobs/:job/kill' },
  signalJob: { method: 'POST', path: '/v1/jobs/:job/signal' },
  removeJob: { method: 'DELETE', path: '/v1/jobs/:job' },
  listAllocations: { method: 'GET', path: '/v1/allocations' },
  getAllocation: { method: 'GET', path: '/v1/allocations/:allocation' },
  logs: { method: 'GET', path: '/v1/allocations/:allocation/logs' },
  attach: { method: 'GET', path: '/v1/allocations/:allocation/attach' },
  exec: { method: 'GET', path: '/v1/allocations/:allocation/exec' },
  events: { method: 'GET', path: '/v1/events' },
  listNodes: { method: 'GET', path: '/v1/nodes' },
  getNode: { method: 'GET', path: '/v1/nodes/:node' },
  cordonNode: { method: 'POST', path: '/v1/nodes/:node/cordon' },
  uncordonNode: { method: 'POST', path: '/v1/nodes/:node/uncordon' },
  removeNode: { method: 'DELETE', path: '/v1/nodes/:node' },
  createJoinToken: { method: 'POST', path: '/v1/join-tokens' },
  join: { method: 'POST', path: '/v1/join' },
  listImages: { method: 'GET', path: '/v1/images' },
  pullImage: { method: 'POST', path: '/v1/images/pull' },
  listTenants: { method: 'GET', path: '/v1/tenants' },
  createTenant: { method: 'POST', path: '/v1/tenants' },
  createToken: { method: 'POST', path: '/v1/tenants/:tenant/tokens' },
  revokeToken: { method: 'DELETE', path: '/v1/tokens/:token' },
  listTokens: { method: 'GET', path: '/v1/tenants/:tenant/tokens' },
} as const satisfies { [Name in ApiName]: { method: Table[Name]['method']; path: Table[Name]['path'] } };

type StaticOf<Schema> = Schema extends TSchema ? Static<Schema> : never;
type Replying<Kind extends string> = {
  [Name in ApiName]: Table[Name]['reply'] extends { kind: Kind } ? Name : never;
}[ApiName];

/** Routes that answer with one JSON object, with nothing, with a stream of objects. */
export type JsonRoute = Replying<'json'>;
export type EmptyRoute = Replying<'empty'>;
export type StreamRoute = Replying<'stream'>;

/** What a route answers with; for a stream, one object of it. */
export type Reply<Name extends ApiName> = Table[Name]['reply'] extends { schema: infer Schema }
  ? StaticOf<Schema>
  : undefined;
export type Query<Name extends ApiName> = Table[Name] extends { query: infer Schema }
  ? StaticOf<Schema>
  : never;
export type Body<Name extends ApiName> = Table[Name] extends { body: infer Schema }
  ? StaticOf<Schema>
  : never;

/** What a caller must say of a job: the image. Everything else has the default that its schema documents. */
export type JobSpecInput = Pick<JobSpec, 'image'> &
  Partial<Omit<JobSpec, 'image' | 'resources'>> & { resources?: Partial<Resources> };
/** What a caller must say of one more process: its command. */
export type ExecSpecInput = Pick<ExecSpec, 'command'> & Partial<Omit<ExecSpec, 'command'>>;
/** A join token is for any role and name, and lasts an hour, unless it says otherwise. */
export type JoinTokenInput = Partial<Body<'createJoinToken'>>;

/** "/v1/jobs/:job/stop" and { job: "web" } to "/v1/jobs/web/stop?graceMs=5"; every part is escaped. */
export function makePath(
  name: ApiName,
  params: Readonly<Record<string, string>> = {},
  query: Readonly<Record<string, string | number | boolean | undefined>> = {},
): string {
  const path = ROUTES[name].path.replace(/:([a-z]+)/g, (_, key: string) =>
    encodeURIComponent(params[key] ?? ''),
  );
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) if (value !== undefined) search.set(key, String(value));
  const text = search.toString();
  return text === '' ? path : `${path}?${text}`;
}
