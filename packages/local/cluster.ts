// A whole cluster on this machine: control plane, node agent with its containerd, and a registry. Its folder says
// everything about it: whoever opens the folder later finds what runs, starts what does not, or stops it all.
import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { CloisterClient } from '@cloister/client/client.ts';
import { freePort } from '@cloister/image/testRegistry.ts';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import { MINIMAL_ENV, run } from '@cloister/kit/program.ts';
import { sampleImages } from './sampleImages.ts';
import { Service } from './service.ts';

const ROOT = resolve(import.meta.dirname, '../..');
/** Booting a machine under KVM to see whether that works is part of an agent's first start. */
const AGENT_START_TIMEOUT_MS = 60_000;
const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 20_000;
const TEARDOWN_TIMEOUT_MS = 120_000;

export interface Ports {
  readonly api: number;
  readonly link: number;
  readonly registry: number;
}

export interface LocalClusterOptions {
  /** Everything of the cluster. */
  readonly folder: string;
  /** On loopback. Default: any free ones, kept from then on. */
  readonly ports?: Ports;
  /** Added to the settings of server and agent; arrays are joined. */
  readonly serverSettings?: Readonly<Record<string, unknown>>;
  readonly agentSettings?: Readonly<Record<string, unknown>>;
  /** What is being done, for people who wait. */
  readonly onProgress?: (what: string) => void;
}

/** Starts what does not run of it. Throws `unavailable` with the log's end when something does not start. */
export async function startLocalCluster(options: LocalClusterOptions): Promise<LocalCluster> {
  const { onProgress = () => {} } = options;
  const cluster = await LocalCluster.open(options);
  try {
    onProgress('starting the registry');
    await cluster.registry.start();
    onProgress('building the sample images');
    await sampleImages(cluster.registryHost);
    onProgress('starting the control plane');
    await cluster.startServer();
    onProgress('starting the node agent');
    await cluster.startAgent();
    return cluster;
  } catch (error) {
    await cluster.stop();
    throw error;
  }
}

/** The cluster of a folder, if there ever was one. Starts nothing. */
export async function findLocalCluster(folder: string): Promise<LocalCluster | undefined> {
  if ((await readFileIfThere(join(folder, 'ports.json'))) === undefined) return undefined;
  return await LocalCluster.open({ folder });
}

export class LocalCluster {
  readonly folder: string;
  readonly registryHost: string;
  readonly apiUrl: string;
  /** Parent of the sandboxes' cgroups: this cluster's alone. */
  readonly cgroupPath: string;
  /** For the cloister command: CLOISTER_CONFIG. */
  readonly configPath: string;
  readonly registry: Service;
  readonly #server: Service;
  readonly #agent: Service;
  readonly #agentConfigPath: string;
  #client: CloisterClient | undefined;
  #serverPid = 0;
  #agentPid = 0;

  private constructor(folder: string, ports: Ports) {
    this.folder = folder;
    this.registryHost = `127.0.0.1:${ports.registry}`;
    this.apiUrl = `https://127.0.0.1:${ports.api}`;
    this.configPath = join(folder, 'cli.json');
    this.cgroupPath = `/cloister/local-${createHash('sha256').update(folder).digest('hex').slice(0, 12)}`;
    this.#agentConfigPath = join(folder, 'agent.json');
    const common = { folder, startTimeoutMs: START_TIMEOUT_MS, stopTimeoutMs: STOP_TIMEOUT_MS };
    const node = { ...common, command: join(ROOT, 'node_modules/.bin/node') };
    this.registry = new Service({
      ...common,
      name: 'registry',
      command: 'docker-registry',
      args: ['serve', join(folder, 'registry.json')],
      env: { OTEL_TRACES_EXPORTER: 'none' },
      isReady: async () =>
        await fetch(`http://${this.registryHost}/v2/`).then(
          (response) => response.ok,
          () => false,
        ),
    });
    this.#server = new Service({
      ...node,
      name: 'server',
      args: [join(ROOT, 'packages/server/main.ts'), join(folder, 'server.json')],
    });
    this.#agent = new Service({
      ...node,
      name: 'agent',
      args: [join(ROOT, 'packages/agent/main.ts'), this.#agentConfigPath],
      startTimeoutMs: AGENT_START_TIMEOUT_MS,
    });
  }

  /** Writes the settings of all parts. */
  static async open(options: LocalClusterOptions): Promise<LocalCluster> {
    const folder = resolve(options.folder);
    await mkdir(folder, { recursive: true, mode: 0o711 });
    const ports = await portsOf(folder, options.ports);
    const cluster = new LocalCluster(folder, ports);
    await cluster.#writeSettings(ports, options);
    return cluster;
  }

  async #writeSettings(ports: Ports, options: LocalClusterOptions): Promise<void> {
    const write = async (name: string, value: object): Promise<void> =>
      await writeFile(join(this.folder, name), JSON.stringify(value, null, 2), { mode: 0o600 });
    await write('registry.json', {
      version: 0.1,
      log: { level: 'error', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: join(this.folder, 'registry') }, delete: { enabled: true } },
      http: { addr: this.registryHost, secret: 'of one process, on loopback' },
    });
    const known = await readFileIfThere(join(this.folder, 'server.json'));
    if (known === undefined || options.serverSettings)
      await write('server.json', {
        dataDir: join(this.folder, 'server'),
        api: { port: ports.api },
        link: { port: ports.link },
        names: ['127.0.0.1', 'localhost'],
        ...options.serverSettings,
      });
    const { insecureRegistries = [], ...agentSettings } = options.agentSettings ?? {};
    if ((await readFileIfThere(this.#agentConfigPath)) === undefined || options.agentSettings)
      await write('agent.json', {
        stateFolder: join(this.folder, 'agent'),
        guestFolder: join(ROOT, 'build/guest'),
        apiUrl: this.apiUrl,
        caFile: join(this.folder, 'server/ca.pem'),
        joinTokenFile: join(this.folder, 'join-token'),
        nodeName: 'local',
        cgroupPath: this.cgroupPath,
        insecureRegistries: [this.registryHost, ...(insecureRegistries as string[])],
        ...agentSettings,
      });
    await write('cli.json', {
      url: this.apiUrl,
      caFile: 'server/ca.pem',
      tokenFile: 'server/operator.token',
    });
  }

  get client(): CloisterClient {
    if (!this.#client) throw new Error('the control plane was not started');
    return this.#client;
  }

  get serverPid(): number {
    return this.#serverPid;
  }

  get agentPid(): number {
    return this.#agentPid;
  }

  async isRunning(): Promise<boolean> {
    const found = await Promise.all([this.registry.find(), this.#server.find(), this.#agent.find()]);
    return found.every((process) => process !== undefined);
  }

  async startServer(): Promise<void> {
    await this.#server.start();
    this.#serverPid = (await this.#server.find())?.pid ?? 0;
    this.#client?.close();
    this.#client = new CloisterClient({
      url: this.apiUrl,
      caPem: await readFile(join(this.folder, 'server/ca.pem'), 'utf8'),
      token: (await readFile(join(this.folder, 'server/operator.token'), 'utf8')).trim(),
    });
  }

  /** Joins it first, when it is not a node yet. */
  async startAgent(): Promise<void> {
    const identity = join(this.folder, 'agent/identity/identity.json');
    if ((await readFileIfThere(identity)) === undefined) {
      const { secret } = await this.client.createJoinToken();
      await writeFileDurably(join(this.folder, 'join-token'), secret);
    }
    await this.#agent.start();
    this.#agentPid = (await this.#agent.find())?.pid ?? 0;
  }

  /** kill -9, as a machine's out-of-memory killer would. */
  async killServer(): Promise<void> {
    await this.#server.kill();
  }

  async killAgent(): Promise<void> {
    await this.#agent.kill();
  }

  /** Ends everything of it: agent, sandboxes, containerd, control plane, registry. What is on the disk stays. */
  async stop(): Promise<void> {
    this.#client?.close();
    await this.#agent.stop();
    if ((await readFileIfThere(this.#agentConfigPath)) !== undefined)
      await run(
        join(ROOT, 'node_modules/.bin/node'),
        [join(ROOT, 'packages/agent/teardown.ts'), this.#agentConfigPath],
        { timeoutMs: TEARDOWN_TIMEOUT_MS, env: MINIMAL_ENV },
      );
    await this.#server.stop();
    await this.registry.stop();
  }
}

/** The ports of this folder: those that were asked for, or those that it had, or free ones. */
async function portsOf(folder: string, asked: Ports | undefined): Promise<Ports> {
  const path = join(folder, 'ports.json');
  const known = await readFileIfThere(path);
  if (known !== undefined) return JSON.parse(known) as Ports;
  const ports = asked ?? { api: await freePort(), link: await freePort(), registry: await freePort() };
  await writeFileDurably(path, JSON.stringify(ports));
  return ports;
}
