// What every handler is given, typed by the table of the API.
import type { KeyAndCertificate } from '@cloister/link/pki.ts';
import type { API, ApiName } from '@cloister/model/api.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import type { AllocationId, JobId, NodeId } from '@cloister/model/ids.ts';
import type { Allocation, Job } from '@cloister/model/job.ts';
import type { WebSocket } from '@fastify/websocket';
import type { Static, TSchema } from 'typebox';
import type { Caller } from '../auth.ts';
import type { Refusals } from '../events.ts';
import type { Fleet } from '../fleet.ts';
import type { Placer } from '../placing.ts';
import {
  type AllocationRecord,
  type Held,
  type JobRecord,
  type NodeRecord,
  viewAllocation,
  viewJob,
} from '../records.ts';
import type { Sessions } from '../sessions.ts';
import type { Cluster } from '../settings.ts';
import type { StreamCounts } from '../streamCounts.ts';

export interface Parts {
  readonly cluster: Cluster;
  readonly fleet: Fleet;
  readonly sessions: Sessions;
  readonly placer: Placer;
  readonly refusals: Refusals;
  readonly streams: StreamCounts;
  readonly authority: KeyAndCertificate;
  readonly linkAddress: string;
}

type PartOf<Name extends ApiName, Key extends string> = (typeof API)[Name] extends {
  readonly [K in Key]: infer S;
}
  ? S extends TSchema
    ? Static<S>
    : never
  : undefined;

export interface Call<Name extends ApiName> {
  /** For routes without access control there is nobody; those do not look. */
  readonly caller: Caller;
  readonly params: Readonly<Record<string, string>>;
  readonly query: PartOf<Name, 'query'>;
  readonly body: PartOf<Name, 'body'>;
  /** Aborted when the client went away, or the server closes. */
  readonly signal: AbortSignal;
  readonly from: string;
}

/** What a handler gives: by the table, a body, nothing, objects for NDJSON, or what serves the WebSocket. */
type ReplyOf<Name extends ApiName> = (typeof API)[Name]['reply'] extends { readonly kind: 'websocket' }
  ? (socket: WebSocket) => Promise<void>
  : (typeof API)[Name]['reply'] extends { readonly kind: 'stream'; readonly schema: infer S extends TSchema }
    ? AsyncIterable<Static<S>>
    : (typeof API)[Name]['reply'] extends { readonly kind: 'json'; readonly schema: infer S extends TSchema }
      ? Static<S>
      : undefined;

export type Handlers<Names extends ApiName> = {
  readonly [Name in Names]: (call: Call<Name>) => Promise<ReplyOf<Name>> | ReplyOf<Name>;
};

/** A job of the caller's by id or name. Others' are not found, in the same words as those that never were. */
export function findJob({ cluster }: Parts, caller: Caller, key: string | undefined): Held<JobRecord> {
  const { state } = cluster.follower;
  const byId = state.jobs.get(key as JobId);
  const job =
    byId?.record.tenantId === caller.tenant.id ? byId : state.jobByName(caller.tenant.id, key ?? '');
  if (!job) throw new CloisterError('not-found', `There is no job "${key}".`);
  return job;
}

export function findAllocation(
  { cluster }: Parts,
  caller: Caller,
  key: string | undefined,
): Held<AllocationRecord> {
  const { state } = cluster.follower;
  const held = state.allocations.get(key as AllocationId);
  if (held?.record.tenantId !== caller.tenant.id || !state.jobs.has(held.record.jobId)) {
    throw new CloisterError('not-found', `There is no allocation "${key}".`);
  }
  return held;
}

export function findNode({ cluster }: Parts, key: string | undefined): Held<NodeRecord> {
  const { state } = cluster.follower;
  const node =
    state.nodes.get(key as NodeId) ?? state.nodes.get(state.nodeIdByName.get(key ?? '') ?? (key as NodeId));
  if (!node) throw new CloisterError('not-found', `There is no node "${key}".`);
  return node;
}

export function showAllocation({ cluster, placer }: Parts, held: Held<AllocationRecord>): Allocation {
  const job = cluster.follower.state.jobs.get(held.record.jobId);
  if (!job) throw new CloisterError('not-found', `There is no allocation "${held.record.id}".`);
  return viewAllocation(held, job, placer.reasonOf(held.record.id));
}

/** A job and its allocations, by index, the newest attempt last. */
export function showJob(parts: Parts, job: Held<JobRecord>): { job: Job; allocations: Allocation[] } {
  const allocations = parts.cluster.follower.state.allocationsOfJob(job.record.id);
  allocations.sort((a, b) => a.record.index - b.record.index || a.record.attempt - b.record.attempt);
  return { job: viewJob(job), allocations: allocations.map((held) => showAllocation(parts, held)) };
}
