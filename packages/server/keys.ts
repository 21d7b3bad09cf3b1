// Where each kind of object is in the store. Values are JSON; every object that belongs to a tenant carries its
// tenantId. The version that users see is the modRevision, which is also what optimistic commits compare.
//
//   tenants/TENANT                 TenantRecord
//   tenant-names/NAME              the tenant's id: holds the name
//   tokens/TOKEN                   TokenRecord, with the secret's hash only
//   join-tokens/ID                 JoinTokenRecord, likewise
//   jobs/JOB                       JobRecord. The job exists when this key does
//   job-names/TENANT/NAME          the job's id: holds the name
//   allocations/JOB/ALLOCATION     AllocationRecord. Without its job's key it is nobody's, and is deleted at a start
//   nodes/NODE                     NodeRecord: what changes seldom. Health and heartbeats are in memory only
//   node-names/NAME                the node's id: holds the name
//   node-work/NODE                 put by each placement on the node, so that two placers cannot both succeed
//   events/OWNER/TIME-SEQUENCE     EventRecord[]: what one transaction tells a tenant, or ("cluster") operators
import type { AllocationId, JobId, NodeId, TenantId, TokenId } from '@cloister/model/ids.ts';
import type { EventOwner } from './records.ts';

export const keys = {
  tenant: (id: TenantId) => `tenants/${id}`,
  tenantName: (name: string) => `tenant-names/${name}`,
  token: (id: TokenId) => `tokens/${id}`,
  joinToken: (id: string) => `join-tokens/${id}`,
  job: (id: JobId) => `jobs/${id}`,
  jobName: (tenantId: TenantId, name: string) => `job-names/${tenantId}/${name}`,
  allocation: (jobId: JobId, id: AllocationId) => `allocations/${jobId}/${id}`,
  allocationsOf: (jobId: JobId) => `allocations/${jobId}/`,
  node: (id: NodeId) => `nodes/${id}`,
  nodeName: (name: string) => `node-names/${name}`,
  nodeWork: (id: NodeId) => `node-work/${id}`,
  events: (owner: EventOwner, atMs: number, sequence: string) =>
    `events/${owner}/${String(atMs).padStart(15, '0')}-${sequence}`,
};

/** The kind and the id of a key, or undefined when it is none of ours. */
export function parseKey(key: string): { readonly kind: string; readonly id: string } | undefined {
  const kindEnd = key.indexOf('/');
  if (kindEnd < 0) return undefined;
  return { kind: key.slice(0, kindEnd), id: key.slice(key.lastIndexOf('/') + 1) };
}
