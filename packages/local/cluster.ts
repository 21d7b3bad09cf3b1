// A whole cluster on this machine: control plane, node agent with its containerd, and a registry. Its folder says
// everything about it: whoever opens the folder later finds what runs, starts what does not, or stops it all.
import { existsSync } from 'node:fs';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CloisterClient } from '@cloister/client/client.ts';
import { findContainerd } from '@cloister/image/containerdProcess.ts';
import { systemClock } from '@cloister/kit/clock.ts';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import { type FolderLock, lockFolder } from '@cloister/kit/folderLock.ts';
import { MINIMAL_ENV, run } from '@cloister/kit/program.ts';
import { poll } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { cgroupMounts, childCgroups } from '@cloister/sandbox/jailCgroup.ts';
import { findLayout, type Layout, makeLayout, type Ports, writeSettings } from './layout.ts';
import { pushSampleImages } from './sampleImages.ts';
import { Service } from './service.ts';

/** A first start boots a machine under KVM to see whether that works. */
const AGENT_START_TIMEOUT_MS = 60_000;
const START_TIMEOUT_MS = 30_000;
/** An agent waits between its attempts to reach a control plane that was away. */
const NODE_READY_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 20_000;
const TEARDOWN_TIMEOUT_MS = 120_000;
/** Without one of them it is no cluster. */
const PARTS = ['registry', 'server', 'agent', 'containerd'] as const;

export interface LocalClusterOptions {
  /** Everything of the cluster, from one start to the next. */
  readonly folder: string;
  /** 0: any free one. What the folder was made with counts more. Default: all 0. */
  readonly ports?: Ports;
  /** Added to the settings of server and agent; insecureRegistries to the one that is always there. */
  readonly serverSettings?: Readonly<Record<string, unknown>>;
  readonly agentSettings?: Readonly<Record<string, unknown>>;
  /** What is being done, for people who wait. */
  readonly onProgress?: (what: string) => void;
  /** Ends the start; what it started is stopped. */
  readonly signal?: AbortSignal;
}

/**
 * Starts what does not run of it, and waits until the node is ready for work. Throws `unavailable` with the end of the
 * log when something does not start, and then stops all, unless something ran before: that may be somebody's work.
 */
export async function startLocalCluster(options: LocalClusterOptions): Promise<LocalCluster> {
  const { folder, onProgress = () => {}, signal } = options;
  await mkdir(folder, { recursive: true, mode: 0o711 });
  const lock = lockCluster(folder);
  try {
    const layout = await makeLayout(folder, options.ports ?? { api: 0, link: 0, registry: 0 });
    const cluster = new LocalCluster(layout);
    const before = await cluster.running();
    if (before.length === 0)
      await writeSettings(layout, { server: options.serverSettings, agent: options.agentSettings });
    try {
      await cluster.startAll(onProgress, signal);
      return cluster;
    } catch (error) {
      if (before.length === 0) await cluster.stopAll();
      cluster.close();
      throw error;
    }
  } finally {
    lock.release();
  }
}

/** The cluster of a folder, if there ever was one. Starts nothing. */
export async function findLocalCluster(folder: string): Promise<LocalCluster | undefined> {
  const layout = await findLayout(folder);
  return layout && new LocalCluster(layout);
}

export class LocalCluster {
  readonly folder: string;
  /** "127.0.0.1:PORT": sample images, and whatever is pushed there. */
  readonly registryHost: string;
  readonly apiUrl: string;
  /** Parent of the sandboxes' cgroups: this cluster's alone. */
  readonly cgroupPath: string;
  /** For the cloister command: CLOISTER_CONFIG. */
  readonly configPath: string;
  readonly registry: Service;
  readonly #layout: Layout;
  readonly #server: Service;
  readonly #agent: Service;
  #client: CloisterClient | undefined;
  #operatorToken = '';
  #caPem = '';
  #serverPid = 0;
  #agentPid = 0;

  /** For startLocalCluster and findLocalCluster. */
  constructor(layout: Layout) {
    const { folder, root, ports } = layout;
    this.#layout = layout;
    this.folder = folder;
    this.registryHost = layout.registryHost;
    this.apiUrl = layout.apiUrl;
    this.cgroupPath = layout.cgroupPath;
    this.configPath = layout.cliConfig;
    const common = { folder, startTimeoutMs: START_TIMEOUT_MS, stopTimeoutMs: STOP_TIMEOUT_MS };
    const command = join(root, 'node_modules/.bin/node');
    this.registry = new Service({
      ...common,
      name: 'registry',
      command: 'docker-registry',
      args: ['serve', layout.registryConfig],
      env: { OTEL_TRACES_EXPORTER: 'none' },
      ports: [ports.registry],
      isReady: async () =>
        await fetch(`http://${this.registryHost}/v2/`).then(
          (response) => response.ok,
          () => false,
        ),
    });
    this.#server = new Service({
      ...common,
      name: 'server',
      command,
      args: [join(root, 'packages/server/main.ts'), layout.serverConfig],
      ports: [ports.api, ports.link],
    });
    this.#agent = new Service({
      ...common,
      name: 'agent',
      command,
      args: [join(root, 'packages/agent/main.ts'), layout.agentConfig],
      startTimeoutMs: AGENT_START_TIMEOUT_MS,
    });
  }

  /** Throws until the control plane was started, or found by `connect`. */
  get client(): CloisterClient {
    if (!this.#client) throw new Error('the control plane was not started');
    return this.#client;
  }

  get operatorToken(): string {
    return this.#operatorToken;
  }

  get caPem(): string {
    return this.#caPem;
  }

  get serverPid(): number {
    return this.#serverPid;
  }

  get agentPid(): number {
    return this.#agentPid;
  }

  /** What runs of it: registry, server, agent, containerd, sandboxes. */
  async running(): Promise<string[]> {
    const services = [this.registry, this.#server, this.#agent];
    const found = await Promise.all(services.map((service) => service.find()));
    const names = services.filter((_, index) => found[index] !== undefined).map(({ name }) => name);
    if ((await findContainerd(this.#layout.containerdFolder)) !== undefined) names.push('containerd');
    if ((await childCgroups(await cgroupMounts(), this.cgroupPath)).length > 0) names.push('sandboxes');
    return names;
  }

  /** Everything runs, and the node takes work. */
  async isReady(): Promise<boolean> {
    const running = await this.running();
    if (!PARTS.every((part) => running.includes(part))) return false;
    try {
      await this.#connect();
      return await this.#isNodeReady();
    } catch {
      return false;
    }
  }

  /** Under the cluster's lock. Everyone else wants startLocalCluster. */
  async startAll(onProgress: (what: string) => void, signal?: AbortSignal): Promise<void> {
    onProgress('registry');
    await this.registry.start(signal);
    onProgress('sample images');
    await pushSampleImages(this.registryHost);
    onProgress('control plane');
    await this.startServer(signal);
    onProgress('node agent and containerd');
    // An agent does not get over the loss of its containerd; the next one starts both, and adopts what runs.
    if ((await findContainerd(this.#layout.containerdFolder)) === undefined) await this.#agent.stop();
    await this.startAgent(signal);
    await poll(async () => ((await this.#isNodeReady()) ? true : undefined), {
      clock: systemClock,
      everyMs: 50,
      timeoutMs: NODE_READY_TIMEOUT_MS,
      makeError: () =>
        new CloisterError('unavailable', `The node does not become ready; see ${this.#agent.logPath}`),
      ...(signal ? { signal } : {}),
    });
  }

  async startServer(signal?: AbortSignal): Promise<void> {
    this.#serverPid = (await this.#server.start(signal)).pid;
    await this.#connect();
  }

  /** Joins it first, when it is not a node yet. */
  async startAgent(signal?: AbortSignal): Promise<void> {
    const { identity, joinToken } = this.#layout;
    if ((await readFileIfThere(identity)) === undefined) {
      const { secret } = await this.client.createJoinToken({}, { signal });
      await writeFileDurably(joinToken, secret);
    }
    this.#agentPid = (await this.#agent.start(signal)).pid;
  }

  /** kill -9, as a machine's out-of-memory killer would. */
  async killServer(): Promise<void> {
    await this.#server.kill();
  }

  async killAgent(): Promise<void> {
    await this.#agent.kill();
  }

  /** Lets go of the API. The cluster goes on. */
  close(): void {
    this.#client?.close();
    this.#client = undefined;
  }

  /** Ends everything of it: agent, sandboxes, containerd, control plane, registry. What is on the disk stays. */
  async stop(): Promise<void> {
    const lock = lockCluster(this.folder);
    try {
      await this.stopAll();
    } finally {
      lock.release();
    }
  }

  /** As `stop`, and removes all that it kept. */
  async forget(): Promise<void> {
    await this.stop();
    await rm(this.#layout.containerdFolder, { recursive: true, force: true });
    await rm(this.folder, { recursive: true, force: true });
  }

  /** Under the cluster's lock. What cannot be stopped keeps nothing else from being stopped. */
  async stopAll(): Promise<void> {
    this.close();
    const errors: unknown[] = [];
    const steps = [
      () => this.#agent.stop(),
      () => this.#teardown(),
      () => this.#server.stop(),
      () => this.registry.stop(),
    ];
    for (const step of steps) await step().catch((error: unknown) => errors.push(error));
    if (errors.length === 1) throw errors[0];
    if (errors.length > 1) throw new AggregateError(errors, errors.map(String).join('; '));
  }

  /** Sandboxes, containerd, cgroups: all that an agent leaves to the next one. */
  async #teardown(): Promise<void> {
    const { root, agentConfig } = this.#layout;
    if (!existsSync(this.#layout.agentFolder)) return; // no agent ever ran
    await run(join(root, 'node_modules/.bin/node'), [join(root, 'packages/agent/teardown.ts'), agentConfig], {
      timeoutMs: TEARDOWN_TIMEOUT_MS,
      env: MINIMAL_ENV,
      detached: true, // who presses Ctrl-C again while all is being ended wants it ended
    });
  }

  async #connect(): Promise<void> {
    this.close();
    const { caFile, operatorToken } = this.#layout;
    this.#caPem = await readFile(caFile, 'utf8');
    this.#operatorToken = (await readFile(operatorToken, 'utf8')).trim();
    this.#client = new CloisterClient({ url: this.apiUrl, caPem: this.#caPem, token: this.#operatorToken });
  }

  async #isNodeReady(): Promise<boolean> {
    const { nodes } = await this.client.listNodes();
    return nodes.some(({ health }) => health === 'ready');
  }
}

/** Held while the cluster is started or stopped: two at once would each see half of it. */
function lockCluster(folder: string): FolderLock {
  return lockFolder(folder, `Somebody else is starting or stopping ${folder} right now`);
}
