// One session with the control plane: hello, heartbeats, what this node says and what it is told.

import type { ImageStore } from '@cloister/image/images.ts';
import type { Clock } from '@cloister/kit/clock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import type { LinkSession } from '@cloister/link/clientLink.ts';
import { type OpenStream, PROTOCOL_VERSION, type ServerMessage } from '@cloister/link/messages.ts';
import { CloisterError, describeError, isErrorCode } from '@cloister/model/errors.ts';
import type { Image } from '@cloister/model/image.ts';
import type { Capacity, NodeFacts } from '@cloister/model/node.ts';
import type { Assignments } from './assignments.ts';
import type { StatusBook } from './statuses.ts';

export interface SessionParts {
  readonly instanceId: string;
  readonly facts: NodeFacts;
  readonly capacity: () => Promise<Capacity>;
  readonly assignments: Pick<Assignments, 'begin' | 'take' | 'complete' | 'remove' | 'signal'>;
  readonly statuses: StatusBook;
  readonly images: Pick<ImageStore, 'list'>;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly serveStream: (session: LinkSession, asked: OpenStream) => Promise<void>;
  /** The control plane has let us in. */
  readonly onWelcome: () => void;
}

/** Bulk streams at once; more are refused by not being opened. */
const MAX_STREAMS = 1_000;

export class AgentSession {
  readonly #parts: SessionParts;
  readonly #session: LinkSession;
  readonly #over = new AbortController();
  #streams = 0;
  #isIn = false;
  #imagesAsked = false;
  #imagesSaying: Promise<void> = Promise.resolve();

  constructor(parts: SessionParts, session: LinkSession) {
    this.#parts = parts;
    this.#session = session;
  }

  /** To its end; throws why. */
  async run(): Promise<void> {
    const { instanceId, facts, capacity, clock, assignments } = this.#parts;
    assignments.begin();
    const hello = {
      instanceId,
      factsJson: JSON.stringify(facts),
      capacityJson: JSON.stringify(await capacity()),
      clockMs: clock.now(),
      protocolVersion: PROTOCOL_VERSION,
    };
    await this.#session.send({ message: 'hello', hello });
    try {
      for await (const message of this.#session) this.#take(message);
      throw (
        (await this.#session.closed) ??
        new CloisterError('unavailable', 'The control plane ended the session.')
      );
    } finally {
      this.#over.abort();
    }
  }

  /** The list of images has changed. Changes in quick succession are told once. */
  imagesChanged(): void {
    if (!this.#isIn || this.#imagesAsked) return; // before the welcome only hello may be said, and after it all is said
    this.#imagesAsked = true;
    this.#imagesSaying = this.#imagesSaying.then(() => this.#sayImages()).catch(() => this.#session.close());
  }

  async #sayImages(): Promise<void> {
    this.#imagesAsked = false;
    const imageJson = this.#parts.images.list().map((image) => {
      const { reference, digest, sizeBytes, blockBytes, pulledAtMs } = image;
      const told: Omit<Image, 'nodeId'> = { reference, digest, sizeBytes, blockBytes, pulledAt: pulledAtMs };
      return JSON.stringify(told);
    });
    await this.#session.send({ message: 'images', images: { imageJson } });
  }

  #take(message: ServerMessage): void {
    const { assignments } = this.#parts;
    switch (message.message) {
      case 'welcome':
        this.#welcomed(message.welcome.heartbeatIntervalMs, message.welcome.clockMs);
        return;
      case 'assignment':
        assignments.take(message.assignment);
        return;
      case 'complete':
        assignments.complete();
        return;
      case 'remove':
        assignments.remove(message.remove.allocationId);
        return;
      case 'openStream':
        void this.#openStream(message.openStream);
        return;
      case 'signal':
        this.#signal(message.signal);
        return;
      case 'statusStored':
        return; // it is kept all the same, and said again in the next session: a few bytes
      case 'refused': {
        const { code, message: why } = message.refused;
        throw new CloisterError(isErrorCode(code) ? code : 'auth.invalid', why);
      }
    }
  }

  #welcomed(heartbeatIntervalMs: number, serverClockMs: number): void {
    const { clock, logger, onWelcome } = this.#parts;
    const skewMs = clock.now() - serverClockMs;
    this.#isIn = true;
    logger.info({ skewMs }, 'the session began');
    onWelcome();
    this.imagesChanged();
    const end = (error: unknown): void => {
      if (this.#over.signal.aborted) return;
      logger.warn({ error: describeError(error) }, 'nothing can be said any more');
      this.#session.close();
    };
    this.#beat(heartbeatIntervalMs).catch(end);
    this.#sayStatuses().catch(end);
  }

  async #beat(intervalMs: number): Promise<void> {
    const { clock } = this.#parts;
    for (let sequence = 1; !this.#over.signal.aborted; sequence++) {
      await clock.sleep(intervalMs, this.#over.signal).catch(() => {});
      if (!this.#over.signal.aborted)
        await this.#session.send({ message: 'heartbeat', heartbeat: { sequence } });
    }
  }

  async #sayStatuses(): Promise<void> {
    for await (const status of this.#parts.statuses.news(this.#over.signal))
      await this.#session.send({ message: 'status', status });
  }

  async #openStream(asked: OpenStream): Promise<void> {
    if (this.#streams >= MAX_STREAMS) return; // the control plane gives up after 10 s
    this.#streams += 1;
    await this.#parts.serveStream(this.#session, asked);
    this.#streams -= 1;
  }

  #signal({
    requestId,
    allocationId,
    signal,
  }: {
    requestId: string;
    allocationId: string;
    signal: number;
  }): void {
    let errorCode = '';
    let errorMessage = '';
    try {
      this.#parts.assignments.signal(allocationId, signal);
    } catch (error) {
      errorCode = error instanceof CloisterError ? error.code : 'internal';
      errorMessage = describeError(error);
    }
    const signalResult = { requestId, errorCode, errorMessage };
    this.#session.send({ message: 'signalResult', signalResult }).catch(() => {}); // the session's end says it
  }
}
