// What the store holds, and how it becomes what the API shows. Records are written by this code only, so they are
// not checked again when read.
import type { EventType } from '@cloister/model/event.ts';
import type { AgentInstanceId, NodeId, TenantId } from '@cloister/model/ids.ts';
import { type Allocation, type Desired, isEnded, type Job } from '@cloister/model/job.ts';
import type { Node } from '@cloister/model/node.ts';
import type { Reason } from '@cloister/model/schema.ts';
import type { Tenant, Token } from '@cloister/model/tenant.ts';

/** A record and the revision it came with. */
export interface Held<Record> {
  readonly record: Record;
  readonly modRevision: number;
}

export type TenantRecord = Tenant;

export type TokenRecord = Token & { readonly secretHash: string };

export interface JoinTokenRecord {
  readonly id: string;
  readonly secretHash: string;
  readonly role: Node['role'];
  readonly nodeName?: string;
  readonly expiresAt: number;
  /** Set once, in the transaction that makes the node. */
  readonly usedBy?: NodeId;
}

export type JobRecord = Omit<Job, 'version'> & {
  /** What ends all of its instances. On the job, so that one write stops a thousand. */
  readonly desired: Desired;
  readonly stopGraceMs: number;
  /** Remove it as soon as all instances ended. */
  readonly removing: boolean;
};

export type AllocationRecord = Omit<Allocation, 'version' | 'desired'> & {
  /** Of the newest status from the node. */
  readonly sequence: number;
};

export type NodeRecord = Omit<Node, 'version' | 'health' | 'used' | 'lastSeenAt'> & {
  /** The agent that joined; no other may hold a session, whatever its certificate. */
  readonly instanceId: AgentInstanceId;
};

export interface EventRecord {
  readonly at: number;
  readonly type: EventType;
  readonly subject: string;
  readonly name?: string;
  readonly message?: string;
  /** Whose object it was; without one, only operators see it. */
  readonly tenantId?: TenantId;
}

/** Whose log an event is in: a tenant's, or the one that operators see. */
export type EventOwner = TenantId | 'cluster';

export function viewJob({ record, modRevision }: Held<JobRecord>): Job {
  const { desired: _desired, stopGraceMs: _grace, removing: _removing, ...job } = record;
  return { ...job, version: modRevision };
}

/** `pendingReason`: why it has no node yet, which is known to the scheduler only. */
export function viewAllocation(
  { record, modRevision }: Held<AllocationRecord>,
  job: Held<JobRecord>,
  pendingReason?: Reason,
): Allocation {
  const { sequence: _sequence, ...allocation } = record;
  return {
    ...allocation,
    ...(record.state === 'pending' && pendingReason ? { reason: pendingReason } : {}),
    desired: job.record.desired,
    // Stopping the job changes what an instance should do, so it counts as a change of the instance.
    version: isEnded(record.state) ? modRevision : Math.max(modRevision, job.modRevision),
  };
}
