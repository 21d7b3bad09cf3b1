// Questions about the states of jobs and allocations. (The model's own answers load its schemas with them, which
// costs a command more time than all it does.)
import type { Allocation, AllocationState, Job } from '@cloister/model/job.ts';

export interface JobWithAllocations {
  readonly job: Job;
  readonly allocations: readonly Allocation[];
}

export const isEndedState = (state: AllocationState): boolean =>
  state === 'exited' || state === 'failed' || state === 'lost';
