// The whole cluster in memory: plain maps with the indexes that the API and the reconciler read. It is fed by
// nothing but the store's watch (follow.ts), so what it shows is always what was committed.
import type { AllocationId, JobId, NodeId, TenantId, TokenId } from '@cloister/model/ids.ts';
import { isEnded } from '@cloister/model/job.ts';
import type { Node } from '@cloister/model/node.ts';
import { chargeOf } from '@cloister/scheduler/snapshot.ts';
import { addToCount } from './counts.ts';
import { parseKey } from './keys.ts';
import type {
  AllocationRecord,
  EventOwner,
  EventRecord,
  Held,
  JobRecord,
  JoinTokenRecord,
  NodeRecord,
  TenantRecord,
  TokenRecord,
} from './records.ts';

/** What one revision changed. */
export interface StateChange {
  readonly revision: number;
  /** Whose own key changed; not those of which only an allocation did. */
  readonly jobs: Set<JobId>;
  readonly allocations: Map<AllocationId, AllocationRecord>;
  readonly nodes: Set<NodeId>;
  readonly events: { readonly revision: number; readonly event: EventRecord }[];
}

/** What is kept of one owner's events. */
export interface EventLog {
  /** Of one transaction each, by their keys, oldest first. */
  entries: Map<string, { readonly revision: number; readonly events: readonly EventRecord[] }>;
  count: number;
}

export class ClusterState {
  revision = 0;
  readonly tenants = new Map<TenantId, Held<TenantRecord>>();
  readonly tenantIdByName = new Map<string, TenantId>();
  readonly tokens = new Map<TokenId, Held<TokenRecord>>();
  readonly joinTokens = new Map<string, Held<JoinTokenRecord>>();
  readonly jobs = new Map<JobId, Held<JobRecord>>();
  readonly jobIdsByTenant = new Map<TenantId, Set<JobId>>();
  readonly #jobIdByName = new Map<string, JobId>();
  readonly allocations = new Map<AllocationId, Held<AllocationRecord>>();
  readonly #allocationsByJob = new Map<JobId, Set<AllocationId>>();
  readonly #allocationsByNode = new Map<NodeId, Set<AllocationId>>();
  /** Without a node, and not ended. */
  readonly pending = new Set<AllocationId>();
  readonly nodes = new Map<NodeId, Held<NodeRecord>>();
  readonly nodeIdByName = new Map<string, NodeId>();
  /** The revision of the newest placement on each node; 0 for none. */
  readonly nodeWork = new Map<NodeId, number>();
  readonly eventLogs = new Map<EventOwner, EventLog>();
  /** What counts against the quotas of a tenant; its jobs are counted above. */
  readonly #jobBytes = new Map<TenantId, number>();
  readonly #allocationCounts = new Map<TenantId, number>();
  readonly #used = new Map<NodeId, Node['used']>();

  jobByName(tenantId: TenantId, name: string): Held<JobRecord> | undefined {
    const id = this.#jobIdByName.get(`${tenantId}/${name}`);
    return id && this.jobs.get(id);
  }

  quotaUseOf(tenantId: TenantId): { jobs: number; jobBytes: number; allocations: number } {
    return {
      jobs: this.jobIdsByTenant.get(tenantId)?.size ?? 0,
      jobBytes: this.#jobBytes.get(tenantId) ?? 0,
      allocations: this.#allocationCounts.get(tenantId) ?? 0,
    };
  }

  /** In no order. */
  allocationsOfJob(jobId: JobId): Held<AllocationRecord>[] {
    return this.#collect(this.#allocationsByJob.get(jobId));
  }

  allocationsOfNode(nodeId: NodeId): Held<AllocationRecord>[] {
    return this.#collect(this.#allocationsByNode.get(nodeId));
  }

  /** Of allocations that no job claims: one put while its job was being removed. */
  orphanedJobIds(): JobId[] {
    return [...this.#allocationsByJob.keys()].filter((jobId) => !this.jobs.has(jobId));
  }

  /** What the node's allocations take that are not ended. */
  usedOf(nodeId: NodeId): Node['used'] {
    const known = this.#used.get(nodeId);
    if (known) return known;
    const used = { cpuMilli: 0, memoryMiB: 0, diskMiB: 0, sandboxes: 0 };
    const capacity = this.nodes.get(nodeId)?.record.capacity;
    for (const { record } of this.allocationsOfNode(nodeId)) {
      const job = this.jobs.get(record.jobId);
      if (!capacity || !job || isEnded(record.state)) continue;
      const charge = chargeOf(job.record.spec.resources, capacity);
      used.cpuMilli += charge.cpuMilli;
      used.memoryMiB += charge.memoryMiB;
      used.diskMiB += charge.diskMiB;
      used.sandboxes += charge.sandboxes;
    }
    this.#used.set(nodeId, used);
    return used;
  }

  newChange(revision: number): StateChange {
    return { revision, jobs: new Set(), allocations: new Map(), nodes: new Set(), events: [] };
  }

  /** Takes in one key; `value` is undefined when it was deleted. Keys of other versions of Cloister are ignored. */
  apply(key: string, value: string | undefined, revision: number, change: StateChange): void {
    const parsed = parseKey(key);
    if (!parsed) return;
    const { kind, id } = parsed;
    const held = value === undefined ? undefined : { record: JSON.parse(value), modRevision: revision };
    if (kind === 'tenants') this.#applyNamed(this.tenants, this.tenantIdByName, id as TenantId, held);
    else if (kind === 'tokens') setOrDelete(this.tokens, id as TokenId, held);
    else if (kind === 'join-tokens') setOrDelete(this.joinTokens, id, held);
    else if (kind === 'jobs') this.#applyJob(id as JobId, held, change);
    else if (kind === 'allocations') this.#applyAllocation(id as AllocationId, held, change);
    else if (kind === 'node-work') setOrDelete(this.nodeWork, id as NodeId, held && revision);
    else if (kind === 'events') this.#applyEvents(key, held, change);
    else if (kind === 'nodes') {
      this.#applyNamed(this.nodes, this.nodeIdByName, id as NodeId, held);
      this.#used.delete(id as NodeId);
      change.nodes.add(id as NodeId);
    }
  }

  #applyNamed<Id, Record extends { readonly name: string }>(
    byId: Map<Id, Held<Record>>,
    byName: Map<string, Id>,
    id: Id,
    held: Held<Record> | undefined,
  ): void {
    const old = byId.get(id);
    if (old) byName.delete(old.record.name);
    setOrDelete(byId, id, held);
    if (held) byName.set(held.record.name, id);
  }

  #applyJob(id: JobId, held: Held<JobRecord> | undefined, change: StateChange): void {
    const old = this.jobs.get(id);
    setOrDelete(this.jobs, id, held);
    change.jobs.add(id);
    const job = held ?? old;
    if (!job) return;
    const { tenantId, name } = job.record;
    addToCount(this.#jobBytes, tenantId, specBytesOf(held) - specBytesOf(old));
    if (held) {
      addTo(this.jobIdsByTenant, tenantId, id);
      this.#jobIdByName.set(`${tenantId}/${name}`, id);
    } else {
      removeFrom(this.jobIdsByTenant, tenantId, id);
      if (this.#jobIdByName.get(`${tenantId}/${name}`) === id)
        this.#jobIdByName.delete(`${tenantId}/${name}`);
    }
    for (const { record } of this.allocationsOfJob(id)) if (record.nodeId) this.#used.delete(record.nodeId);
  }

  #applyAllocation(id: AllocationId, held: Held<AllocationRecord> | undefined, change: StateChange): void {
    const old = this.allocations.get(id);
    if (old) {
      removeFrom(this.#allocationsByJob, old.record.jobId, id);
      if (old.record.nodeId) removeFrom(this.#allocationsByNode, old.record.nodeId, id);
    }
    setOrDelete(this.allocations, id, held);
    this.pending.delete(id);
    const record = held?.record ?? old?.record;
    if (!record) return;
    addToCount(this.#allocationCounts, record.tenantId, (held ? 1 : 0) - (old ? 1 : 0));
    if (held) {
      addTo(this.#allocationsByJob, record.jobId, id);
      if (record.nodeId) addTo(this.#allocationsByNode, record.nodeId, id);
      if (record.state === 'pending') this.pending.add(id);
    }
    if (record.nodeId) this.#used.delete(record.nodeId);
    change.allocations.set(id, record);
  }

  #applyEvents(key: string, held: Held<EventRecord[]> | undefined, change: StateChange): void {
    const owner = key.split('/')[1] as EventOwner;
    const log = this.eventLogs.get(owner) ?? { entries: new Map(), count: 0 };
    log.count -= log.entries.get(key)?.events.length ?? 0;
    log.entries.delete(key);
    if (held) {
      const { record: events, modRevision: revision } = held;
      log.entries.set(key, { revision, events });
      log.count += events.length;
      for (const event of events) change.events.push({ revision, event });
    }
    if (log.entries.size > 0) this.eventLogs.set(owner, log);
    else this.eventLogs.delete(owner);
  }

  #collect(ids: ReadonlySet<AllocationId> | undefined): Held<AllocationRecord>[] {
    const found: Held<AllocationRecord>[] = [];
    for (const id of ids ?? []) {
      const held = this.allocations.get(id);
      if (held) found.push(held);
    }
    return found;
  }
}

function setOrDelete<Key, Value>(map: Map<Key, Value>, key: Key, value: Value | undefined): void {
  if (value === undefined) map.delete(key);
  else map.set(key, value);
}

const specBytesOf = (held: Held<JobRecord> | undefined): number =>
  held ? JSON.stringify(held.record.spec).length : 0;

function addTo<Key, Item>(map: Map<Key, Set<Item>>, key: Key, item: Item): void {
  const set = map.get(key);
  if (set) set.add(item);
  else map.set(key, new Set([item]));
}

function removeFrom<Key, Item>(map: Map<Key, Set<Item>>, key: Key, item: Item): void {
  const set = map.get(key);
  set?.delete(item);
  if (set?.size === 0) map.delete(key);
}
