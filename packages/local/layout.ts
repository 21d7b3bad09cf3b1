// Where everything of a local cluster is, and the settings of its parts: what they are told differs from one cluster to
// the next only by its folder, so that several on one machine never meet.
import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { freePort } from '@cloister/image/testRegistry.ts';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';

const ROOT = resolve(import.meta.dirname, '../..');
/** containerd's socket is in its folder, and the path of a socket is short. */
const MAX_CONTAINERD_FOLDER_LENGTH = 80;
/** Users of a cluster's sandboxes: clusters are numbered by their folders, and each has this many. */
const USERS_EACH = 512;
const CLUSTERS = 2_000_000;
const FIRST_USER = 1_000_000_000;

/** On loopback. */
export interface Ports {
  readonly api: number;
  readonly link: number;
  readonly registry: number;
}

export interface Layout {
  readonly root: string;
  readonly folder: string;
  readonly ports: Ports;
  readonly registryHost: string;
  readonly apiUrl: string;
  /** Parent of the sandboxes' cgroups: this cluster's alone. */
  readonly cgroupPath: string;
  readonly agentFolder: string;
  readonly containerdFolder: string;
  /** Settings of each part. */
  readonly registryConfig: string;
  readonly serverConfig: string;
  readonly agentConfig: string;
  /** For the cloister command: CLOISTER_CONFIG. */
  readonly cliConfig: string;
  readonly joinToken: string;
  readonly identity: string;
  readonly caFile: string;
  readonly operatorToken: string;
}

export interface ExtraSettings {
  readonly server?: Readonly<Record<string, unknown>> | undefined;
  readonly agent?: Readonly<Record<string, unknown>> | undefined;
}

/** Of a cluster that has a folder already; undefined when it has none. */
export async function findLayout(folder: string): Promise<Layout | undefined> {
  const known = await readFileIfThere(portsPath(folder));
  return known === undefined ? undefined : layoutOf(resolve(folder), JSON.parse(known) as Ports);
}

/** `ports`: what the folder says counts more, since the node has joined there; a port of 0 becomes any free one. */
export async function makeLayout(folder: string, ports: Ports): Promise<Layout> {
  const known = await findLayout(folder);
  if (known) return known;
  await mkdir(folder, { recursive: true, mode: 0o711 });
  const chosen = {
    api: ports.api || (await freePort()),
    link: ports.link || (await freePort()),
    registry: ports.registry || (await freePort()),
  };
  await writeFileDurably(portsPath(folder), JSON.stringify(chosen));
  return layoutOf(resolve(folder), chosen);
}

const portsPath = (folder: string): string => join(folder, 'ports.json');

function layoutOf(folder: string, ports: Ports): Layout {
  const hash = hashOf(folder).toString('hex').slice(0, 12);
  const agentFolder = join(folder, 'agent');
  const within = join(agentFolder, 'containerd');
  return {
    root: ROOT,
    folder,
    ports,
    registryHost: `127.0.0.1:${ports.registry}`,
    apiUrl: `https://127.0.0.1:${ports.api}`,
    cgroupPath: `/cloister/local-${hash}`,
    agentFolder,
    containerdFolder:
      within.length <= MAX_CONTAINERD_FOLDER_LENGTH ? within : `/var/lib/cloister-local-${hash}`,
    registryConfig: join(folder, 'registry.json'),
    serverConfig: join(folder, 'server.json'),
    agentConfig: join(folder, 'agent.json'),
    cliConfig: join(folder, 'cli.json'),
    joinToken: join(folder, 'join-token'),
    identity: join(agentFolder, 'identity/identity.json'),
    caFile: join(folder, 'server/ca.pem'),
    operatorToken: join(folder, 'server/operator.token'),
  };
}

const hashOf = (folder: string): Buffer => createHash('sha256').update(folder).digest();

/** `extra` is added to the settings of server and agent; its insecureRegistries to ours. */
export async function writeSettings(layout: Layout, extra: ExtraSettings): Promise<void> {
  const { folder, ports } = layout;
  const write = async (path: string, value: object): Promise<void> =>
    await writeFileDurably(path, `${JSON.stringify(value, null, 2)}\n`);
  await write(layout.registryConfig, {
    version: 0.1,
    log: { level: 'error', accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: join(folder, 'registry') }, delete: { enabled: true } },
    http: { addr: layout.registryHost, secret: 'of one process, on loopback' },
  });
  await write(layout.serverConfig, {
    dataDir: join(folder, 'server'),
    api: { port: ports.api },
    link: { port: ports.link },
    names: ['127.0.0.1', 'localhost'],
    ...extra.server,
  });
  const { insecureRegistries, ...agent } = extra.agent ?? {};
  await write(layout.agentConfig, {
    stateFolder: layout.agentFolder,
    containerdFolder: layout.containerdFolder,
    guestFolder: join(layout.root, 'build/guest'),
    apiUrl: layout.apiUrl,
    caFile: layout.caFile,
    joinTokenFile: layout.joinToken,
    nodeName: 'local',
    cgroupPath: layout.cgroupPath,
    firstUid: FIRST_USER + (hashOf(folder).readUInt32BE(0) % CLUSTERS) * USERS_EACH,
    insecureRegistries: [
      layout.registryHost,
      ...(Array.isArray(insecureRegistries) ? insecureRegistries : []),
    ],
    ...agent,
  });
  await write(layout.cliConfig, {
    url: layout.apiUrl,
    caFile: 'server/ca.pem',
    tokenFile: 'server/operator.token',
  });
}
