// One allocation on this node: its image pulled, its sandbox started, its end told. Which of them there should be is
// decided in assignments.ts.

import type { ImageStore, ImageUse } from '@cloister/image/images.ts';
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { PullProgress } from '@cloister/model/image.ts';
import type { JobSpec, Timeline } from '@cloister/model/job.ts';
import type { Reason } from '@cloister/model/schema.ts';
import { formatBytes } from '@cloister/model/units.ts';
import type { Sandbox } from '@cloister/sandbox/sandbox.ts';
import type { Sandboxes } from '@cloister/sandbox/sandboxes.ts';
import type { StatusBook, StatusNews } from './statuses.ts';

export interface AllocationParts {
  readonly images: ImageStore;
  readonly sandboxes: Sandboxes;
  readonly statuses: StatusBook;
  readonly clock: Clock;
  readonly logger: Logger;
  /** The list of images has changed. */
  readonly onImages: () => void;
}

export interface AllocationTask {
  readonly id: string;
  readonly tenantId: string;
  readonly spec: JobSpec;
  readonly hostname: string;
}

const KILLED = { state: 'exited', exitCode: 137, signal: 9 } as const;

export class NodeAllocation {
  readonly id: string;
  readonly #parts: AllocationParts;
  readonly #pull = new AbortController();
  #sandbox: Sandbox | undefined;
  #use: ImageUse | undefined;
  #imageDigest = '';
  #settled: Promise<void> = Promise.resolve();

  private constructor(parts: AllocationParts, id: string) {
    this.id = id;
    this.#parts = parts;
  }

  /** Pulls and starts. Whatever goes wrong becomes its status. */
  static start(parts: AllocationParts, task: AllocationTask): NodeAllocation {
    const allocation = new NodeAllocation(parts, task.id);
    allocation.#settled = allocation.#start(task).catch((error: unknown) => allocation.#failed(error));
    return allocation;
  }

  /** One whose sandbox is there already, from an agent before this one. */
  static adopt(parts: AllocationParts, sandbox: Sandbox): NodeAllocation {
    const allocation = new NodeAllocation(parts, sandbox.id);
    allocation.#sandbox = sandbox;
    allocation.#imageDigest = sandbox.request.image.digest;
    if (!hasEnded(sandbox)) allocation.#useImage();
    allocation.changed();
    return allocation;
  }

  get sandbox(): Sandbox | undefined {
    return this.#sandbox;
  }

  async #start({ id, spec, hostname }: AllocationTask): Promise<void> {
    const { images, sandboxes, clock } = this.#parts;
    const receivedAt = clock.now();
    const image = await images.pull(spec.image, {
      signal: this.#pull.signal,
      onProgress: (step) => this.#pulling(spec.image, step, { receivedAt }),
    });
    this.#imageDigest = image.digest;
    this.#useImage();
    this.#pull.signal.throwIfAborted();
    const { digest, blockPath, config } = image;
    this.#sandbox = sandboxes.create({
      id,
      image: { digest, blockPath, config },
      spec,
      hostname,
      timeline: { receivedAt, imageReadyAt: clock.now() },
    });
    this.changed();
  }

  #useImage(): void {
    try {
      this.#use = this.#parts.images.use(this.#imageDigest);
    } catch (error) {
      // Adopted, and its image's record is gone: its machine has the file open all the same.
      this.#parts.logger.warn({ allocation: this.id, error: describeError(error) }, 'an image is not held');
    }
  }

  #pulling(
    reference: string,
    step: Pick<PullProgress, 'stage' | 'fetchedBytes' | 'totalBytes'>,
    timeline: Timeline,
  ): void {
    if (step.stage === 'done') {
      this.#parts.onImages();
      return;
    }
    const message = `Pulling ${reference}: ${describePull(step)}`;
    this.#parts.statuses.tell(this.id, {
      state: 'pulling',
      reason: { code: 'image.pulling', message },
      timeline,
    });
  }

  #failed(error: unknown): void {
    const { aborted, reason } = this.#pull.signal;
    if (aborted && reason instanceof CloisterError && reason.code === 'unavailable') return; // the next agent starts anew
    const code = error instanceof CloisterError ? error.code : 'internal';
    this.#tell(aborted ? KILLED : { state: 'failed', reason: { code, message: describeError(error) } });
  }

  /** The sandbox's state or timeline is another: say so. */
  changed(): void {
    const sandbox = this.#sandbox;
    if (!sandbox) return;
    if (hasEnded(sandbox)) this.#use?.release();
    this.#tell(newsOf(sandbox));
  }

  #tell(news: StatusNews): void {
    const { statuses } = this.#parts;
    statuses.tell(this.id, { ...news, ...(this.#imageDigest ? { imageDigest: this.#imageDigest } : {}) });
  }

  stop(graceMs: number): void {
    if (this.#sandbox) this.#sandbox.stop(graceMs);
    else this.#pull.abort(new CloisterError('state.wrong', 'It was stopped before its image was here.'));
  }

  kill(reason?: Reason): void {
    if (this.#sandbox) void this.#sandbox.kill(reason);
    else this.#pull.abort(new CloisterError('state.wrong', 'It was killed before its image was here.'));
  }

  /** Ends it if need be, and removes all of it. */
  async remove(): Promise<void> {
    this.#pull.abort(new CloisterError('state.wrong', 'It was removed before its image was here.'));
    await this.#settled;
    await this.#parts.sandboxes.remove(this.id);
    this.#use?.release();
    this.#parts.statuses.forget(this.id);
  }

  /** Gives up a pull; a sandbox runs on. */
  async close(): Promise<void> {
    this.#pull.abort(new CloisterError('unavailable', 'The agent is closing.'));
    await this.#settled;
  }
}

function newsOf({ state, timeline }: Sandbox): StatusNews {
  switch (state.phase) {
    case 'starting':
    case 'running':
      return { state: state.phase, timeline };
    case 'exited': {
      const { phase, ...end } = state;
      return { state: phase, ...end, timeline };
    }
    case 'failed':
      return { state: 'failed', reason: state.reason, timeline };
  }
}

export function hasEnded({ state }: Sandbox): boolean {
  return state.phase === 'exited' || state.phase === 'failed';
}

/** "12.0 MiB of 80.1 MiB (15%)" while bytes come; the stage's name otherwise. */
export function describePull(step: Pick<PullProgress, 'stage' | 'fetchedBytes' | 'totalBytes'>): string {
  if (step.stage !== 'fetching' || step.totalBytes === 0) return step.stage;
  const percent = Math.floor((100 * step.fetchedBytes) / step.totalBytes);
  return `${formatBytes(step.fetchedBytes)} of ${formatBytes(step.totalBytes)} (${percent}%)`;
}
