// From what a user writes (a job's name, an id, the beginning of an id) to the job or allocation that is meant.
import { ApiError } from '@cloister/client/apiError.ts';
import type { CloisterClient } from '@cloister/client/client.ts';
import type { Allocation } from '@cloister/model/job.ts';
import { isEndedState, type JobWithAllocations } from './states.ts';

export interface Target extends JobWithAllocations {
  /** When an allocation was named, not a job. */
  readonly named?: Allocation;
}

const KEY = /^[a-z0-9][a-z0-9_.-]{0,63}$/;

/** Throws `not-found`, or `conflict` when a beginning fits several. A name wins over the beginning of an id. */
export async function resolveTarget(client: CloisterClient, key: string): Promise<Target> {
  if (KEY.test(key)) {
    const exact = await ifThere(client.getJob(key));
    if (exact) return exact;
    const { jobs } = await client.listJobs();
    const fits = (id: string) => id.startsWith(key) || id.slice(4).startsWith(key);
    const matches: Target[] = jobs.flatMap((record): Target[] => [
      ...(fits(record.job.id) ? [record] : []),
      ...record.allocations.filter(({ id }) => fits(id)).map((named) => ({ ...record, named })),
    ]);
    const [first, second] = matches;
    if (first && !second) return first;
    if (first) {
      const ids = matches.slice(0, 5).map(({ job, named }) => named?.id ?? job.id);
      throw new ApiError(
        'conflict',
        `"${key}" is the beginning of ${matches.length} ids: ${ids.join(', ')}.`,
        { hint: 'Write more of the id, or a name.' },
      );
    }
  }
  throw new ApiError('not-found', `There is no job or allocation "${key.slice(0, 64)}".`, {
    hint: 'List them with "cloister ps -a".',
  });
}

/** The job, for what acts on whole jobs: an allocation will do when it is the job's only one. */
export async function resolveJob(client: CloisterClient, key: string): Promise<JobWithAllocations> {
  const target = await resolveTarget(client, key);
  if (target.named && target.job.spec.count > 1) {
    throw new ApiError(
      'state.wrong',
      `${target.named.id} is one of the ${target.job.spec.count} instances of job ${target.job.name}, and this acts on the whole job.`,
      {
        hint: `To do so, name the job: ${target.job.name}.`,
      },
    );
  }
  return target;
}

/** The allocations that are meant: the named one, or the latest of each instance. */
export function meantAllocations(target: Target): Allocation[] {
  if (target.named) return [target.named];
  const latest = new Map<number, Allocation>();
  for (const allocation of target.allocations) {
    if ((latest.get(allocation.index)?.attempt ?? -1) < allocation.attempt)
      latest.set(allocation.index, allocation);
  }
  return [...latest.values()].sort((a, b) => a.index - b.index);
}

/** Waits until all instances ended, `timeoutMs` at most; false when some have not. */
export async function waitUntilEnded(
  client: CloisterClient,
  record: JobWithAllocations,
  timeoutMs: number,
): Promise<boolean> {
  const signal = AbortSignal.timeout(timeoutMs);
  for (const { id, ...allocation } of record.allocations) {
    let { state, version } = allocation;
    while (!isEndedState(state)) {
      try {
        ({ state, version } = await client.getAllocation(id, { waitVersion: version }, { signal }));
      } catch (error) {
        if (signal.aborted) return false;
        if (error instanceof ApiError && error.code === 'not-found') break; // removed: ended too
        throw error;
      }
    }
  }
  return true;
}

async function ifThere<Value>(promise: Promise<Value>): Promise<Value | undefined> {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof ApiError && error.code === 'not-found') return undefined;
    throw error;
  }
}
