// A whole one-machine cluster for end-to-end tests: real processes, a registry to push to, and the cloister command.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { finish, type Result } from '@cloister/cli/testCli.ts';
import { buildBusyboxImage, type ImageRecipe } from '@cloister/image/testImage.ts';
import { TestRegistry } from '@cloister/image/testRegistry.ts';
import { type LocalCluster, startLocalCluster } from '@cloister/local/cluster.ts';
import { type Allocation, isEnded } from '@cloister/model/job.ts';

const CLI = join(import.meta.dirname, '../../bin/cloister');
const CLI_TIMEOUT_MS = 120_000;

export type Cli = ChildProcess & {
  readonly stdin: NonNullable<ChildProcess['stdin']>;
  readonly stdout: NonNullable<ChildProcess['stdout']>;
  readonly stderr: NonNullable<ChildProcess['stderr']>;
};

export class EndToEnd implements AsyncDisposable {
  readonly folder: string;
  readonly cluster: LocalCluster;
  readonly registry: TestRegistry;
  /** Busybox, on the registry and, after its first use, on the node. */
  readonly busybox: string;

  private constructor(folder: string, cluster: LocalCluster, registry: TestRegistry, busybox: string) {
    this.folder = folder;
    this.cluster = cluster;
    this.registry = registry;
    this.busybox = busybox;
  }

  static async start(
    settings: { readonly agent?: Record<string, unknown>; readonly server?: Record<string, unknown> } = {},
  ): Promise<EndToEnd> {
    const folder = await mkdtemp(join(tmpdir(), 'cloister-e2e-'));
    const registry = await TestRegistry.start();
    const busybox = await registry.pushImage(buildBusyboxImage(), 'busybox');
    const { insecureRegistries = [], ...agentSettings } = settings.agent ?? {};
    const cluster = await startLocalCluster({
      folder: join(folder, 'cluster'),
      agentSettings: {
        insecureRegistries: [registry.host, ...(insecureRegistries as string[])],
        ...agentSettings,
      },
      serverSettings: settings.server ?? {},
    });
    return new EndToEnd(folder, cluster, registry, busybox);
  }

  /** Pushes busybox with this on top; gives its reference. */
  async push(name: string, recipe: Omit<ImageRecipe, 'layers'>): Promise<string> {
    return await this.registry.pushImage(buildBusyboxImage(recipe), name);
  }

  /** The command, with pipes; under `script`, with a terminal of 30 rows and 100 columns. */
  spawn(
    args: readonly string[],
    options: { readonly terminal?: boolean; readonly env?: Record<string, string> } = {},
  ): Cli {
    const quoted = [CLI, ...args].map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(' ');
    const [command = '', ...rest] = options.terminal
      ? ['script', '-qec', `stty rows 30 cols 100; ${quoted}`, '/dev/null']
      : [CLI, ...args];
    const child = spawn(command, rest, {
      env: {
        PATH: process.env['PATH'] ?? '',
        HOME: this.folder,
        TERM: 'xterm',
        CLOISTER_CONFIG: this.cluster.configPath,
        ...options.env,
      },
      stdio: 'pipe',
      timeout: CLI_TIMEOUT_MS,
      killSignal: 'SIGKILL',
    }) as Cli;
    child.stdin.on('error', () => {}); // it may end before it has read
    return child;
  }

  async cli(
    args: readonly string[],
    options: { readonly input?: string | Buffer; readonly env?: Record<string, string> } = {},
  ): Promise<Result> {
    const child = this.spawn(args, options);
    child.stdin.end(options.input);
    return await finish(child);
  }

  /** As `cli`, for what must succeed: its standard output. */
  async ok(...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.cli(args);
    if (code !== 0) throw new Error(`cloister ${args.join(' ')}: ${code}: ${stderr}`);
    return stdout.toString();
  }

  /** Runs a job to its end, without the command. */
  async run(spec: Record<string, unknown>): Promise<Allocation> {
    return await this.ended(await this.submit(spec));
  }

  /** The id of the job's allocation. */
  async submit(spec: Record<string, unknown>): Promise<string> {
    const resources = { cpuMilli: 500, memoryMiB: 128, diskMiB: 64 };
    const { allocations } = await this.cluster.client.createJob({ image: this.busybox, resources, ...spec });
    return allocations[0]?.id ?? '';
  }

  async ended(allocationId: string): Promise<Allocation> {
    return await this.until(allocationId, ({ state }) => isEnded(state));
  }

  async until(allocationId: string, wanted: (allocation: Allocation) => boolean): Promise<Allocation> {
    const deadlineMs = performance.now() + CLI_TIMEOUT_MS;
    for (let version = 0; ; ) {
      const allocation = await this.cluster.client.getAllocation(allocationId, { waitVersion: version });
      if (wanted(allocation)) return allocation;
      if (performance.now() > deadlineMs || isEnded(allocation.state))
        throw new Error(`it is never as wanted: ${JSON.stringify(allocation)}`);
      version = allocation.version;
    }
  }

  async logs(allocationId: string, follow = false): Promise<string> {
    const parts: Buffer[] = [];
    for await (const line of this.cluster.client.logs(allocationId, { follow }))
      parts.push(Buffer.from(line.data, 'base64'));
    return Buffer.concat(parts).toString();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.cluster.stop();
    await this.registry.stop();
    await rm(this.folder, { recursive: true, force: true });
  }
}
