// What people read of an allocation on its node: how far its pull is, what its machine is called.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type JobSpec, JobSpecSchema } from '@cloister/model/job.ts';
import Value from 'typebox/value';
import { describePull } from './allocation.ts';
import { hostnameOf } from './assignments.ts';

test('a pull is described by its bytes while they come, and by its stage otherwise', () => {
  const MIB = 1_048_576;
  const step = { fetchedBytes: 12 * MIB, totalBytes: 80 * MIB };
  assert.equal(describePull({ stage: 'fetching', ...step }), '12.0 MiB of 80.0 MiB (15%)');
  assert.equal(describePull({ stage: 'resolving', ...step }), 'resolving');
  assert.equal(describePull({ stage: 'fetching', fetchedBytes: 0, totalBytes: 0 }), 'fetching');
});

test("a machine is named as the job wishes, or after the job, numbered where there are several, always a host's name", () => {
  const spec = (more: object): JobSpec => Value.Default(JobSpecSchema, { image: 'a', ...more }) as JobSpec;
  assert.equal(hostnameOf(spec({ hostname: 'wish', count: 3 }), 'job', 2), 'wish');
  assert.equal(hostnameOf(spec({}), 'my_job.v2', 0), 'my-job-v2');
  assert.equal(hostnameOf(spec({ count: 12 }), 'job', 11), 'job-11');
  const long = hostnameOf(spec({ count: 1000 }), 'j'.repeat(63), 999);
  assert.deepEqual([long.length, long.endsWith('j-999')], [63, true]);
  assert.equal(hostnameOf(spec({}), '...', 0), 'sandbox');
});
