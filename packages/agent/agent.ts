// The node agent: puts images, sandboxes and the link together, and holds a session for as long as it runs.
import { mkdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ContainerdProcess } from '@cloister/image/containerdProcess.ts';
import { ImageStore } from '@cloister/image/images.ts';
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { readFileIfThere } from '@cloister/kit/file.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { connectLink, runSessions } from '@cloister/link/clientLink.ts';
import { parseJson } from '@cloister/link/json.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { Sandbox } from '@cloister/sandbox/sandbox.ts';
import { type FolderLock, lockFolder } from '@cloister/store/folderLock.ts';
import Type from 'typebox';
import { Assignments } from './assignments.ts';
import { capacityOf, factsOf } from './capacity.ts';
import { type Identity, loadOrJoin } from './identity.ts';
import { type Machines, openMachines } from './machines.ts';
import { AgentSession } from './session.ts';
import { containerdFolderOf, type Settings } from './settings.ts';
import { StatusBook } from './statuses.ts';
import { serveStream } from './streams.ts';

const COLLECT_EVERY_MS = 300_000;

const CredentialsSchema = Type.Record(
  Type.String({ maxLength: 300 }),
  Type.Object(
    {
      username: Type.String({ maxLength: 256 }),
      password: Type.String({ maxLength: 16_384 }),
      tenants: Type.Optional(Type.Array(Type.String({ maxLength: 64 }), { maxItems: 10_000 })),
    },
    { additionalProperties: false },
  ),
);

/** Of its state folder. Throws `state.wrong` when another agent has it. */
export async function lockStateFolder(stateFolder: string): Promise<FolderLock> {
  await mkdir(stateFolder, { recursive: true, mode: 0o711 });
  try {
    return lockFolder(stateFolder);
  } catch (error) {
    throw new CloisterError('state.wrong', `Another agent runs with ${stateFolder}.`, { cause: error });
  }
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
      const assignments = new Assignments({ images, sandboxes, statuses, clock, logger, onImages });
      agent = new Agent({ settings, identity, clock, logger, lock, machines, images, statuses, assignments });
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
      connect: () => connectLink({ address: linkAddress, caPem, certificatePem, keyPem }),
      onSession: async (link) => {
        const session = this.#newSession(link);
        this.#session = session;
        await session.run();
      },
      onLost: (error, retryInMs) => {
        this.#session = undefined;
        const retryMs = Math.round(retryInMs);
        this.#logger.warn({ error: describeError(error), retryMs }, 'there is no session; sandboxes run on');
      },
      clock: this.#clock,
      signal: this.#closing.signal,
    });
  }

  #newSession(link: ConstructorParameters<typeof AgentSession>[1]): AgentSession {
    const { driver, guest, sandboxes } = this.#machines;
    const assignments = this.#assignments;
    const streams = {
      images: this.#images,
      sandboxOf: (id: string) => assignments.sandboxOf(id),
      reasonOf: (id: string) => this.#reasonOf(id),
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
        onWelcome: () => this.#welcomed.resolve(),
      },
      link,
    );
  }

  #reasonOf(allocationId: string): { code: string; message: string } {
    const status = this.#statuses.get(allocationId);
    if (status?.reasonCode) return { code: status.reasonCode, message: status.reasonMessage };
    return { code: 'state.wrong', message: 'The allocation has no sandbox on its node.' };
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
    await this.#running;
    await this.#assignments.close();
    await this.#images.close();
    await this.#machines.sandboxes.close();
    this.#lock.release();
  }
}

async function openImages(settings: Settings, clock: Clock, logger: Logger): Promise<ImageStore> {
  const containerd = await ContainerdProcess.open({ folder: containerdFolderOf(settings), clock, logger });
  const credentials = await readCredentials(settings.credentialsFile);
  return await ImageStore.open({
    containerd,
    folder: join(settings.stateFolder, 'images'),
    insecureRegistries: settings.insecureRegistries,
    credentials: (registry) => credentials.get(registry),
    maxImageBytes: settings.maxImageBytes,
    clock,
    logger,
  });
}

async function readCredentials(path: string | undefined): Promise<Map<string, Static>> {
  const text = path === undefined ? undefined : await readFileIfThere(path);
  if (path === undefined || text === undefined) return new Map();
  if (((await stat(path)).mode & 0o077) !== 0)
    throw new CloisterError(
      'request.invalid',
      `${path} holds credentials and others may read it: chmod 600 ${path}`,
    );
  return new Map(Object.entries(parseJson(CredentialsSchema, text, 'the credentials')));
}

type Static = Type.Static<typeof CredentialsSchema>[string];
