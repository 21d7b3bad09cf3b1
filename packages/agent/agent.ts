// The node agent: puts images, sandboxes and the link together, and holds a session for as long as it runs.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { ContainerdProcess } from '@cloister/image/containerdProcess.ts';
import { ImageStore } from '@cloister/image/images.ts';
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { type FolderLock, lockFolder } from '@cloister/kit/folderLock.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { connectLink, type LinkSession, runSessions } from '@cloister/link/clientLink.ts';
import { CloisterError, describeError, ERROR_CODES } from '@cloister/model/errors.ts';
import type { Sandbox } from '@cloister/sandbox/sandbox.ts';
import { Assignments } from './assignments.ts';
import { capacityOf, factsOf } from './capacity.ts';
import { readCredentials } from './credentials.ts';
import { Fence } from './fence.ts';
import { type Identity, loadOrJoin } from './identity.ts';
import { type Machines, openMachines } from './machines.ts';
import { AgentSession } from './session.ts';
import { containerdFolderOf, type Settings } from './settings.ts';
import { StatusBook } from './statuses.ts';
import { serveStream } from './streams.ts';

const COLLECT_EVERY_MS = 300_000;

/** Of its state folder. Throws `folder.locked` when another agent has it. */
export async function lockStateFolder(stateFolder: string): Promise<FolderLock> {
  await mkdir(stateFolder, { recursive: true, mode: 0o711 });
  return lockFolder(stateFolder, `Another agent runs with ${stateFolder}.`);
}

export class Agent {
  readonly nodeId: string;
  /** Resolves when the control plane has let it in for the first time. */
  readonly welcomed: Promise<void>;
  readonly #settings: Settings;
  readonly #identity: Identity;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #lock: FolderLock;
  readonly #machines: Machines;
  readonly #images: ImageStore;
  readonly #statuses: StatusBook;
  readonly #assignments: Assignments;
  readonly #fence: Fence;
  readonly #closing = new AbortController();
  readonly #welcomed = Promise.withResolvers<void>();
  #session: AgentSession | undefined;
  #running: Promise<unknown> = Promise.resolve();

  private constructor(parts: {
    settings: Settings;
    identity: Identity;
    clock: Clock;
    logger: Logger;
    lock: FolderLock;
    machines: Machines;
    images: ImageStore;
    statuses: StatusBook;
    assignments: Assignments;
  }) {
    this.#settings = parts.settings;
    this.#identity = parts.identity;
    this.#clock = parts.clock;
    this.#logger = parts.logger;
    this.#lock = parts.lock;
    this.#machines = parts.machines;
    this.#images = parts.images;
    this.#statuses = parts.statuses;
    this.#assignments = parts.assignments;
    this.#fence = new Fence({
      afterMs: parts.settings.fenceAfterMs,
      clock: parts.clock,
      onFence: () => {
        this.#logger.warn('without a session for too long: services are ended');
        this.#assignments.fence();
      },
    });
    this.nodeId = parts.identity.nodeId;
    this.welcomed = this.#welcomed.promise;
  }

  /** Joins if need be, adopts what runs, and begins to hold sessions. */
  static async start(settings: Settings, options: { logger: Logger; clock?: Clock }): Promise<Agent> {
    const { logger, clock = systemClock } = options;
    const lock = await lockStateFolder(settings.stateFolder);
    try {
      const identity = await loadOrJoin(settings, logger);
      const statuses = await StatusBook.open(settings.stateFolder);
      const images = await openImages(settings, clock, logger);
      let agent: Agent | undefined;
      const machines = await openMachines(settings, {
        clock,
        logger,
        onChange: (sandbox) => agent?.sandboxChanged(sandbox),
      });
      const { sandboxes } = machines;
      const onImages = (): void => agent?.imagesChanged();
      const common = { images, statuses, clock, logger };
      const assignments = new Assignments({ ...common, sandboxes, onImages });
      agent = new Agent({ ...common, settings, identity, lock, machines, assignments });
      agent.#running = Promise.all([agent.#holdSessions(), agent.#collectImages()]);
      return agent;
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  /** For the parts below. */
  sandboxChanged(sandbox: Sandbox): void {
    this.#assignments.sandboxChanged(sandbox);
  }

  imagesChanged(): void {
    this.#session?.imagesChanged();
  }

  async #holdSessions(): Promise<void> {
    const { linkAddress, caPem, certificatePem, keyPem } = this.#identity;
    await runSessions({
      connect: (signal) => connectLink({ address: linkAddress, caPem, certificatePem, keyPem, signal }),
      onSession: async (link) => {
        const session = this.#newSession(link);
        this.#session = session;
        await session.run();
      },
      onLost: (error, retryInMs) => {
        this.#session = undefined;
        this.#fence.sessionLost();
        const about = { error: describeError(error), retryMs: Math.round(retryInMs) };
        const hint = error instanceof CloisterError ? ERROR_CODES[error.code].hint : undefined;
        this.#logger.warn({ ...about, hint }, 'there is no session; sandboxes run on');
      },
      clock: this.#clock,
      signal: this.#closing.signal,
    });
  }

  #newSession(link: LinkSession): AgentSession {
    const { driver, guest, sandboxes } = this.#machines;
    const assignments = this.#assignments;
    const streams = {
      images: this.#images,
      sandboxOf: (id: string) => assignments.sandboxOf(id),
      statusOf: (id: string) => this.#statuses.get(id),
      clock: this.#clock,
      nodeId: this.nodeId,
      logger: this.#logger,
      onImages: () => this.imagesChanged(),
    };
    return new AgentSession(
      {
        instanceId: this.#identity.instanceId,
        facts: factsOf(driver, guest),
        capacity: () =>
          capacityOf(
            this.#settings,
            driver,
            sandboxes.all().map(({ id }) => id),
          ),
        assignments,
        statuses: this.#statuses,
        images: this.#images,
        clock: this.#clock,
        logger: this.#logger,
        serveStream: (session, asked) => serveStream(streams, session, asked),
        onWelcome: () => {
          this.#fence.sessionBegan();
          this.#welcomed.resolve();
        },
      },
      link,
    );
  }

  async #collectImages(): Promise<void> {
    const { imageKeepMs: keepMs, imagesMaxBytes: maxBytes } = this.#settings;
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        const dropped = await this.#images.collect({ keepMs, maxBytes });
        if (dropped.length > 0) this.imagesChanged();
      } catch (error) {
        this.#logger.warn({ error: describeError(error) }, 'images could not be collected');
      }
      await this.#clock.sleep(COLLECT_EVERY_MS, signal).catch(() => {});
    }
  }

  /** Leaves sandboxes and containerd running, for the next agent. */
  async close(): Promise<void> {
    this.#closing.abort(new CloisterError('unavailable', 'The agent is closing.'));
    this.#fence.close();
    await this.#running;
    await this.#assignments.close();
    await this.#images.close();
    await this.#machines.sandboxes.close();
    this.#lock.release();
  }
}

async function openImages(settings: Settings, clock: Clock, logger: Logger): Promise<ImageStore> {
  const { allowedRegistries } = settings;
  const credentials = await readCredentials(settings.credentialsFile);
  const containerd = await ContainerdProcess.open({ folder: containerdFolderOf(settings), clock, logger });
  return await ImageStore.open({
    containerd,
    folder: join(settings.stateFolder, 'images'),
    insecureRegistries: settings.insecureRegistries,
    internalRegistries: settings.internalRegistries,
    ...(allowedRegistries ? { allowedRegistries } : {}),
    credentials: (registry) => credentials.get(registry),
    maxImageBytes: settings.maxImageBytes,
    clock,
    logger,
  });
}
