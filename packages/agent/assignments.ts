// What the control plane wants of this node, and what is done about it. Every word of it may come again.
import { parseJson } from '@cloister/link/json.ts';
import type { Assignment } from '@cloister/link/messages.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { AllocationIdSchema } from '@cloister/model/ids.ts';
import { type JobSpec, JobSpecSchema } from '@cloister/model/job.ts';
import type { Sandbox } from '@cloister/sandbox/sandbox.ts';
import { type AllocationParts, NodeAllocation } from './allocation.ts';

export class Assignments {
  readonly #parts: AllocationParts;
  readonly #all = new Map<string, NodeAllocation>();
  readonly #removals = new Set<Promise<void>>();
  /** Named in the present session's list, until that is complete. */
  #named: Set<string> | undefined;

  /** Takes over the sandboxes that are there. */
  constructor(parts: AllocationParts) {
    this.#parts = parts;
    for (const sandbox of parts.sandboxes.all())
      this.#all.set(sandbox.id, NodeAllocation.adopt(parts, sandbox));
  }

  sandboxOf(allocationId: string): Sandbox | undefined {
    return this.#all.get(allocationId)?.sandbox;
  }

  sandboxChanged(sandbox: Sandbox): void {
    this.#all.get(sandbox.id)?.changed();
  }

  /** A session begins: the list of all that this node should have follows. */
  begin(): void {
    this.#named = new Set();
  }

  take(assignment: Assignment): void {
    const { allocationId: id, desired } = assignment;
    this.#named?.add(id);
    const allocation = this.#all.get(id);
    if (assignment.keep) {
      // Ended, by what the control plane knows: it was given up while this node was away, and others may do its work.
      allocation?.kill({
        code: 'node.down',
        message: 'The node was away for too long; its work was given up.',
      });
    } else if (desired === 'run') {
      if (!allocation) this.#start(assignment);
    } else if (!allocation) {
      if (!this.#parts.statuses.get(id))
        this.#parts.statuses.tell(id, { state: 'exited', exitCode: 137, signal: 9 });
    } else if (desired === 'stop') {
      allocation.stop(assignment.stopGraceMs);
    } else {
      allocation.kill();
    }
  }

  /** The list was complete: what it did not name is nobody's. */
  complete(): void {
    for (const id of this.#all.keys()) if (this.#named && !this.#named.has(id)) this.remove(id);
    this.#named = undefined;
  }

  remove(id: string): void {
    const allocation = this.#all.get(id);
    this.#parts.statuses.forget(id);
    if (!allocation) return;
    const removal = allocation
      .remove()
      .then(
        () => void this.#all.delete(id),
        (error: unknown) => {
          // It stays among ours, so the next session's list, which does not name it, has it removed again.
          const about = { allocation: id, error: describeError(error) };
          this.#parts.logger.error(about, 'it could not be removed');
        },
      )
      .finally(() => this.#removals.delete(removal));
    this.#removals.add(removal);
  }

  /** Others may begin what this node does: see fence.ts. */
  fence(): void {
    const reason = { code: 'node.down', message: 'The node lost its control plane and ended its services.' };
    for (const allocation of this.#all.values()) if (allocation.kind === 'service') allocation.kill(reason);
  }

  /** Throws `state.wrong` when it does not run here. */
  signal(allocationId: string, signal: number): void {
    const sandbox = this.sandboxOf(allocationId);
    if (!sandbox) throw new CloisterError('state.wrong', 'The allocation does not run yet.');
    sandbox.signal(signal);
  }

  /** Ends nothing but pulls. */
  async close(): Promise<void> {
    await Promise.all(this.#removals);
    await Promise.all([...this.#all.values()].map((allocation) => allocation.close()));
  }

  #start(assignment: Assignment): void {
    const { statuses } = this.#parts;
    try {
      const id = parseJson(AllocationIdSchema, JSON.stringify(assignment.allocationId), "an allocation's id");
      const spec = parseJson(JobSpecSchema, assignment.specJson, 'the spec of an assignment');
      const hostname = hostnameOf(spec, assignment.jobName, assignment.index);
      const { tenantId } = assignment;
      this.#all.set(id, NodeAllocation.start(this.#parts, { id, tenantId, spec, hostname }));
    } catch (error) {
      const code = error instanceof CloisterError ? error.code : 'internal';
      statuses.tell(assignment.allocationId, {
        state: 'failed',
        reason: { code, message: describeError(error) },
      });
    }
  }
}

/** The job's wish, or its name as far as host names allow, with the instance's number where there are several. */
export function hostnameOf(spec: JobSpec, jobName: string, index: number): string {
  if (spec.hostname !== undefined) return spec.hostname;
  const suffix = spec.count > 1 ? `-${index}` : '';
  const name = jobName.replaceAll(/[^a-z0-9-]/g, '-').slice(0, 63 - suffix.length);
  return `${name.replaceAll(/^-+|-+$/g, '')}${suffix}` || 'sandbox';
}
