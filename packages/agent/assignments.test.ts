// What is done about each word of the control plane, and about the same word again. Machines are not needed for that:
// those here only write down what was asked of them.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { PulledImage } from '@cloister/image/images.ts';
import { ManualClock } from '@cloister/kit/clock.ts';
import { silentLogger } from '@cloister/kit/log.ts';
import type { Assignment } from '@cloister/link/messages.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { newAllocationId } from '@cloister/model/ids.ts';
import { JobSpecSchema } from '@cloister/model/job.ts';
import type { Sandbox, SandboxRequest } from '@cloister/sandbox/sandbox.ts';
import Value from 'typebox/value';
import { Assignments } from './assignments.ts';
import { StatusBook } from './statuses.ts';

const DIGEST = 'sha256:0';
const [ONE, TWO] = [newAllocationId(), newAllocationId()];
let folder: string;
let statuses: StatusBook;
let did: string[];
let held: number;
let present: Map<string, Sandbox>;
let refuseRemoval: boolean;
/** Of each pull: to be let through by the test. */
let pulls: PromiseWithResolvers<PulledImage>[];
let assignments: Assignments;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cloister-assignments-'));
  statuses = await StatusBook.open(folder);
  [did, held, present, refuseRemoval, pulls] = [[], 0, new Map(), false, []];
  assignments = open();
});
afterEach(async () => await rm(folder, { recursive: true }));

const resources = { cpuMilli: 100, memoryMiB: 128, diskMiB: 64 };
const specOf = (more: object = {}) => Value.Default(JobSpecSchema, { image: 'a', resources, ...more });

function sandboxOf(request: Pick<SandboxRequest, 'id' | 'spec' | 'image'>): Sandbox {
  const { id } = request;
  const sandbox = {
    ...{ id, request, state: { phase: 'running' }, timeline: {} },
    stop: (graceMs: number) => void did.push(`stop ${id} ${graceMs}`),
    kill: async () => void did.push(`kill ${id}`),
  } as unknown as Sandbox;
  present.set(id, sandbox);
  return sandbox;
}

function open(): Assignments {
  return new Assignments({
    images: {
      pull: async (_reference, { signal } = {}) => {
        const pull = Promise.withResolvers<PulledImage>();
        signal?.addEventListener('abort', () => pull.reject(signal.reason));
        pulls.push(pull);
        return await pull.promise;
      },
      use: () => {
        held += 1;
        const release = (): void => {
          held -= 1;
        };
        return { release, [Symbol.dispose]: release } as never;
      },
    },
    sandboxes: {
      all: () => [...present.values()],
      create: (request) => {
        did.push(`create ${request.id}`);
        return sandboxOf(request);
      },
      remove: async (id) => {
        did.push(`remove ${id}`);
        if (refuseRemoval) throw new Error('the disk says no');
        present.delete(id);
      },
    },
    statuses,
    clock: new ManualClock(),
    logger: silentLogger,
    onImages: () => {},
  });
}

const word = (allocationId: string, more: Partial<Assignment> = {}): Assignment => ({
  ...{ allocationId, tenantId: 'ten-a', jobId: 'job-a', jobName: 'a', specJson: JSON.stringify(specOf()) },
  ...{ desired: 'run', stopGraceMs: 5, index: 0, keep: false },
  ...more,
});
const settle = async (): Promise<void> => await new Promise((resolve) => setImmediate(resolve));
const letThrough = async (): Promise<void> => {
  for (const pull of pulls.splice(0))
    pull.resolve({ digest: DIGEST, blockPath: '/b', config: {} } as PulledImage);
  await settle();
};
const endOf = (id: string) => [statuses.get(id)?.state, statuses.get(id)?.exitCode];

test('the same word again, in this session or the next, starts nothing twice', async () => {
  for (let session = 0; session < 2; session++) {
    assignments.begin();
    assignments.take(word(ONE));
    assignments.take(word(ONE));
    assignments.complete();
    await letThrough();
  }
  assert.deepEqual(did, [`create ${ONE}`]);
  assert.equal(held, 1);
});

test('what a complete list does not name is removed, what was adopted too; an incomplete list removes nothing', async () => {
  for (const id of [ONE, TWO]) sandboxOf({ id, spec: specOf() as never, image: { digest: DIGEST } as never });
  assignments = open();
  assert.equal(held, 2, 'the images of adopted machines are held from the first moment');
  assignments.begin(); // and the session breaks
  assignments.begin();
  assignments.take(word(ONE));
  assert.deepEqual(did, []);
  assignments.complete();
  await settle();
  assert.deepEqual(did, [`remove ${TWO}`]);
  assert.equal(held, 1);
  assert.equal(statuses.get(TWO), undefined);
});

test('a removal that fails is tried again when the next list does not name it either', async () => {
  sandboxOf({ id: ONE, spec: specOf() as never, image: { digest: DIGEST } as never });
  assignments = open();
  refuseRemoval = true;
  assignments.remove(ONE);
  await settle();
  refuseRemoval = false;
  assignments.begin();
  assignments.complete();
  await settle();
  assert.deepEqual(did, [`remove ${ONE}`, `remove ${ONE}`]);
  assert.equal(present.size, 0);
});

test('a pull is cut off by stop and by kill, and removed without a last word', async () => {
  for (const desired of ['stop', 'kill']) {
    const id = newAllocationId();
    assignments.take(word(id));
    assignments.take(word(id, { desired }));
    await settle();
    assert.deepEqual(endOf(id), ['exited', 137]);
  }
  assignments.take(word(ONE));
  assignments.remove(ONE);
  await settle();
  assert.equal(statuses.get(ONE), undefined);
  assert.deepEqual(did, [`remove ${ONE}`]);
  assert.equal(held, 0);
});

test('a kill that comes when the image has just come starts nothing, and holds no image', async () => {
  assignments.take(word(ONE));
  for (const pull of pulls.splice(0))
    pull.resolve({ digest: DIGEST, blockPath: '/b', config: {} } as PulledImage);
  assignments.take(word(ONE, { desired: 'kill' }));
  await settle();
  assert.deepEqual(endOf(ONE), ['exited', 137]);
  assert.deepEqual([did, held], [[], 0]);
});

test('a machine is stopped with its grace, killed, and killed when its work was given up; absent ones only answer', async () => {
  assignments.take(word(ONE));
  await letThrough();
  assignments.take(word(ONE, { desired: 'stop' }));
  assignments.take(word(ONE, { desired: 'kill' }));
  assignments.take(word(ONE, { keep: true }));
  assert.deepEqual(did, [`create ${ONE}`, `stop ${ONE} 5`, `kill ${ONE}`, `kill ${ONE}`]);
  assignments.take(word(TWO, { desired: 'stop' }));
  assert.deepEqual(endOf(TWO), ['exited', 137]);
  const third = newAllocationId();
  assignments.take(word(third, { keep: true }));
  assert.equal(statuses.get(third), undefined, 'it has ended: nothing is said and nothing is run');
  assert.equal(pulls.length, 0);
});

test('an image that does not come, and a spec that cannot be read, are failures with their reason', async () => {
  assignments.take(word(ONE));
  pulls[0]?.reject(new CloisterError('image.not-found', 'It is not there.'));
  assignments.take(word(TWO, { specJson: '{"image":1}' }));
  await settle();
  const told = [ONE, TWO].map((id) => [statuses.get(id)?.state, statuses.get(id)?.reasonCode]);
  assert.deepEqual(told, [
    ['failed', 'image.not-found'],
    ['failed', 'request.invalid'],
  ]);
});

test('a fence ends services, running or being pulled, and leaves batch work', async () => {
  const service = JSON.stringify(specOf({ kind: 'service' }));
  assignments.take(word(ONE, { specJson: service }));
  await letThrough();
  assignments.take(word(TWO));
  await letThrough();
  const pulled = newAllocationId();
  assignments.take(word(pulled, { specJson: service }));
  assignments.fence();
  await settle();
  assert.deepEqual(did.slice(2), [`kill ${ONE}`]);
  assert.deepEqual([...endOf(pulled), statuses.get(pulled)?.reasonCode], ['exited', 137, 'node.down']);
});

test('an agent that closes gives up pulls without a word: the next one pulls again', async () => {
  assignments.take(word(ONE));
  await assignments.close();
  assert.equal(statuses.get(ONE), undefined);
});
