// Images: which there are, and pulling one ahead of its use.
import { BoundedQueue } from '@cloister/kit/queue.ts';
import { parseJson } from '@cloister/link/json.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { NodeId, TenantId } from '@cloister/model/ids.ts';
import { type Image, type PullProgress, PullProgressSchema } from '@cloister/model/image.ts';
import { checkReference } from '../jobs.ts';
import { type Call, findNode, type Handlers, type Parts } from './call.ts';

const MAX_PROGRESS_WAITING = 64;
/** Images that a tenant pulled without running them, remembered until the server starts again. */
const MAX_PULLED_PER_TENANT = 1_000;

export function imageHandlers(parts: Parts): Handlers<'listImages' | 'pullImage'> {
  const pulled = new Map<TenantId, Set<string>>();
  return {
    // The names of images tell what others run, so a tenant sees those that it runs, ran or pulled itself.
    listImages: ({ caller }) => {
      const { state } = parts.cluster.follower;
      const images: Image[] = [...state.nodes.keys()].flatMap((nodeId) => parts.fleet.imagesOf(nodeId));
      if (caller.scope === 'operator') return { images };
      const digests = new Set(pulled.get(caller.tenant.id));
      for (const jobId of state.jobIdsByTenant.get(caller.tenant.id) ?? []) {
        for (const { record } of state.allocationsOfJob(jobId))
          if (record.imageDigest) digests.add(record.imageDigest);
      }
      return { images: images.filter(({ digest }) => digests.has(digest)) };
    },
    pullImage: (call) => {
      checkReference(call.body.reference, '/reference');
      const nodeIds = targets(parts, call.body.node);
      const remember = (digest: string): void => {
        const mine = pulled.get(call.caller.tenant.id) ?? new Set();
        if (mine.size < MAX_PULLED_PER_TENANT) pulled.set(call.caller.tenant.id, mine.add(digest));
      };
      return pullAll(parts, call, nodeIds, remember);
    },
  };
}

function targets(parts: Parts, key: string | undefined): NodeId[] {
  if (key !== undefined) {
    const { id } = findNode(parts, key).record;
    parts.fleet.requireReady(id);
    return [id];
  }
  const workers = [...parts.cluster.follower.state.nodes.values()].filter(
    ({ record }) => record.role === 'worker' && parts.fleet.healthOf(record.id) === 'ready',
  );
  if (workers.length === 0) throw new CloisterError('unavailable', 'Could not pull: no worker is connected.');
  return workers.map(({ record }) => record.id);
}

async function* pullAll(
  parts: Parts,
  { body, signal }: Call<'pullImage'>,
  nodeIds: readonly NodeId[],
  remember: (digest: string) => void,
): AsyncGenerator<PullProgress> {
  const progress = new BoundedQueue<PullProgress>(MAX_PROGRESS_WAITING);
  const stop = new AbortController();
  const abort = (): void => {
    stop.abort();
    progress.close();
  };
  signal.addEventListener('abort', abort);
  const pulls = nodeIds.map((nodeId) => pullOne(parts, nodeId, body.reference, progress, stop.signal));
  void Promise.all(pulls).finally(() => progress.close());
  try {
    for await (const step of progress) {
      if (step.stage === 'done' && step.digest) remember(step.digest);
      yield step;
    }
  } finally {
    signal.removeEventListener('abort', abort);
    abort();
  }
}

/** Never throws: a failure is progress, too. */
async function pullOne(
  parts: Parts,
  nodeId: NodeId,
  reference: string,
  progress: BoundedQueue<PullProgress>,
  signal: AbortSignal,
): Promise<void> {
  let last: PullProgress['stage'] = 'resolving';
  try {
    const frames = await parts.sessions.openStream(nodeId, { purpose: 'pull', pull: { reference } });
    const cancel = (): void => frames.cancel();
    signal.addEventListener('abort', cancel);
    if (signal.aborted) cancel();
    try {
      for await (const frame of frames) {
        if (frame.frame !== 'progressJson') continue;
        const step = parseJson(PullProgressSchema, frame.progressJson, 'the progress of a pull');
        last = step.stage;
        if (!(await progress.push({ ...step, nodeId }))) return;
        if (last === 'done' || last === 'failed') return;
      }
    } finally {
      signal.removeEventListener('abort', cancel);
      frames.cancel();
    }
    throw new CloisterError('image.pull-failed', 'The node ended the pull without saying how it went.');
  } catch (error) {
    const code = error instanceof CloisterError ? error.code : 'image.pull-failed';
    const reason = { code, message: describeError(error) };
    await progress.push({ reference, nodeId, stage: 'failed', fetchedBytes: 0, totalBytes: 0, reason });
  }
}
