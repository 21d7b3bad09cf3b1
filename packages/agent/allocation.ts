// One allocation on this node: its image pulled, its sandbox started, its end told. Which of them there should be is
// decided in assignments.ts.

import type { ImageStore, ImageUse, PulledImage } from '@cloister/image/images.ts';
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { PullProgress } from '@cloister/model/image.ts';
import type { JobSpec } from '@cloister/model/job.ts';
import type { Reason } from '@cloister/model/schema.ts';
import { formatBytes } from '@cloister/model/units.ts';
import type { Sandbox } from '@cloister/sandbox/sandbox.ts';
import type { Sandboxes } from '@cloister/sandbox/sandboxes.ts';
import type { StatusBook, StatusNews } from './statuses.ts';

export interface AllocationParts {
  readonly images: Pick<ImageStore, 'pull' | 'use'>;
  readonly sandboxes: Pick<Sandboxes, 'all' | 'create' | 'remove'>;
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
/** Between two words on a pull, but for its stages: each becomes a durable write of the control plane. */
const PROGRESS_EVERY_MS = 300;

export class NodeAllocation {
  readonly id: string;
  readonly kind: JobSpec['kind'];
  readonly #parts: AllocationParts;
  readonly #receivedAt: number;
  readonly #pull = new AbortController();
  #progress = { stage: '', atMs: 0 };
  /** What is told when the pull is cut off. */
  #killed: StatusNews = KILLED;
  #sandbox: Sandbox | undefined;
  #use: ImageUse | undefined;
  #imageDigest = '';
  #isRemoved = false;
  #settled: Promise<void> = Promise.resolve();

  private constructor(parts: AllocationParts, id: string, kind: JobSpec['kind']) {
    this.id = id;
    this.kind = kind;
    this.#parts = parts;
    this.#receivedAt = parts.clock.now();
  }

  /** Pulls and starts. Whatever goes wrong becomes its status. */
  static start(parts: AllocationParts, task: AllocationTask): NodeAllocation {
    const allocation = new NodeAllocation(parts, task.id, task.spec.kind);
    allocation.#settled = allocation.#start(task).catch((error: unknown) => allocation.#failed(error));
    return allocation;
  }

  /** One whose sandbox is there already, from an agent before this one. */
  static adopt(parts: AllocationParts, sandbox: Sandbox): NodeAllocation {
    const allocation = new NodeAllocation(parts, sandbox.id, sandbox.request.spec.kind);
    allocation.#sandbox = sandbox;
    allocation.#imageDigest = sandbox.request.image.digest;
    if (!hasEnded(sandbox)) allocation.#holdImage();
    allocation.changed();
    return allocation;
  }

  get sandbox(): Sandbox | undefined {
    return this.#sandbox;
  }

  async #start({ id, tenantId, spec, hostname }: AllocationTask): Promise<void> {
    const { sandboxes, clock } = this.#parts;
    const { digest, blockPath, config } = await this.#pullAndHold(spec.image, tenantId);
    this.#pull.signal.throwIfAborted();
    this.#sandbox = sandboxes.create({
      id,
      image: { digest, blockPath, config },
      spec,
      hostname,
      timeline: { receivedAt: this.#receivedAt, imageReadyAt: clock.now() },
    });
    this.changed();
  }

  async #pullAndHold(reference: string, tenantId: string): Promise<PulledImage> {
    const { images, onImages } = this.#parts;
    for (let attempt = 1; ; attempt++) {
      const image = await images.pull(reference, {
        group: tenantId,
        signal: this.#pull.signal,
        onProgress: (step) => this.#pulling(reference, step),
      });
      if (this.#progress.stage !== '') onImages();
      this.#imageDigest = image.digest;
      try {
        this.#use = images.use(image.digest);
        return image;
      } catch (error) {
        if (attempt === 2) throw error; // it was collected just when we found it: once is bad luck
      }
    }
  }

  #holdImage(): void {
    try {
      this.#use = this.#parts.images.use(this.#imageDigest);
    } catch (error) {
      // Its image's record is gone: its machine has the file open all the same.
      this.#parts.logger.warn({ allocation: this.id, error: describeError(error) }, 'an image is not held');
    }
  }

  #pulling(reference: string, step: Pick<PullProgress, 'stage' | 'fetchedBytes' | 'totalBytes'>): void {
    const { clock, statuses } = this.#parts;
    const atMs = clock.monotonic();
    const isNews = step.stage !== this.#progress.stage || atMs - this.#progress.atMs >= PROGRESS_EVERY_MS;
    if (step.stage === 'done' || !isNews || this.#isRemoved) return;
    this.#progress = { stage: step.stage, atMs };
    statuses.tell(this.id, {
      state: 'pulling',
      reason: { code: 'image.pulling', message: `Pulling ${reference}: ${describePull(step)}` },
      timeline: { receivedAt: this.#receivedAt },
    });
  }

  #failed(error: unknown): void {
    const { aborted, reason } = this.#pull.signal;
    this.#use?.release();
    if (aborted && reason instanceof CloisterError && reason.code === 'unavailable') return; // the next agent starts anew
    const code = error instanceof CloisterError ? error.code : 'internal';
    const timeline = { receivedAt: this.#receivedAt, endedAt: this.#parts.clock.now() };
    const failure: StatusNews = { state: 'failed', reason: { code, message: describeError(error) } };
    this.#tell({ ...(aborted ? this.#killed : failure), timeline });
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
    if (this.#isRemoved) return; // who removed it does not want to hear how it ended
    statuses.tell(this.id, { ...news, ...(this.#imageDigest ? { imageDigest: this.#imageDigest } : {}) });
  }

  stop(graceMs: number): void {
    if (this.#sandbox) this.#sandbox.stop(graceMs);
    else this.#pull.abort(new CloisterError('state.wrong', 'It was stopped before its image was here.'));
  }

  kill(reason?: Reason): void {
    if (this.#sandbox) {
      void this.#sandbox.kill(reason);
      return;
    }
    if (reason) this.#killed = { ...KILLED, reason };
    this.#pull.abort(new CloisterError('state.wrong', 'It was killed before its image was here.'));
  }

  /** Ends it if need be, and removes all of it. May be called again when it has thrown. */
  async remove(): Promise<void> {
    this.#isRemoved = true;
    this.#pull.abort(new CloisterError('state.wrong', 'It was removed before its image was here.'));
    await this.#settled;
    await this.#parts.sandboxes.remove(this.id);
    this.#use?.release();
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
