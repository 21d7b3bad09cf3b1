// For tests: a control plane, a registry, and node agents, each a process of its own that can be killed, in a folder
// that goes with them.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { TestRegistry } from '@cloister/image/testRegistry.ts';
import { MINIMAL_ENV, run, runUnchecked } from '@cloister/kit/program.ts';
import { type Allocation, isEnded } from '@cloister/model/job.ts';
import { WebSocket } from 'ws';

const ROOT = join(import.meta.dirname, '../..');
const TAIL_BYTES = 8_192;
/** Booting a machine under KVM, to see whether that works, is part of a first start. */
const START_TIMEOUT_MS = 60_000;

/** A program that says one line on standard output when it is ready. */
export class TestProcess {
  readonly child: ChildProcess;
  #log = '';

  constructor(args: readonly string[]) {
    this.child = spawn(process.execPath, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...MINIMAL_ENV, CLOISTER_LOG: 'warn' },
    });
    this.child.stderr?.on('data', (chunk: Buffer) => {
      this.#log = (this.#log + chunk.toString()).slice(-TAIL_BYTES);
    });
  }

  /** The last of what it said on standard error. */
  get log(): string {
    return this.#log;
  }

  async ready(): Promise<Record<string, string>> {
    const late = AbortSignal.timeout(START_TIMEOUT_MS);
    const ended = once(this.child, 'exit', { signal: late }).then(() => {
      throw new Error(`it ended before it was ready: ${this.#log}`);
    });
    const line = once(this.child.stdout ?? this.child, 'data', { signal: late });
    ended.catch(() => {}); // it ends later
    const [text] = await Promise.race([line, ended]);
    return JSON.parse(String(text)) as Record<string, string>;
  }

  /** Returns when it is gone; its exit code, or null when a signal ended it. */
  async end(signal: NodeJS.Signals): Promise<number | null> {
    const { child } = this;
    if (child.exitCode === null && child.signalCode === null) {
      child.kill(signal);
      await once(child, 'exit');
    }
    return child.exitCode;
  }
}

export interface Reply {
  readonly status: number;
  // A test looks into whatever came back.
  // biome-ignore lint/suspicious/noExplicitAny: tests read answers freely
  readonly body: any;
}

export class TestCluster implements AsyncDisposable {
  readonly folder: string;
  readonly registry: TestRegistry;
  readonly cgroupPath: string;
  readonly #serverSettings: Record<string, unknown>;
  readonly #agents: { readonly configPath: string; process: TestProcess }[] = [];
  readonly #firstUid = 1_600_000_000 + randomBytes(2).readUInt16LE() * 64;
  #server: TestProcess | undefined;
  #addresses: Record<string, string> = {};
  caPem = '';
  operator = '';

  private constructor(folder: string, registry: TestRegistry, serverSettings: Record<string, unknown>) {
    this.folder = folder;
    this.registry = registry;
    this.cgroupPath = `/${basename(folder)}`;
    this.#serverSettings = serverSettings;
  }

  static async start(serverSettings: Record<string, unknown> = {}): Promise<TestCluster> {
    const folder = await mkdtemp(join(tmpdir(), 'cl-agent-'));
    const cluster = new TestCluster(folder, await TestRegistry.start(), serverSettings);
    try {
      await cluster.startServer();
      return cluster;
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Again where it was. */
  async startServer(): Promise<void> {
    const port = (address: string | undefined): number => Number(address?.split(':').at(-1) ?? 0);
    const { apiAddress, linkAddress } = this.#addresses;
    const configPath = join(this.folder, 'server.json');
    const settings = {
      dataDir: join(this.folder, 'server'),
      api: { port: port(apiAddress) },
      link: { port: port(linkAddress) },
      names: ['127.0.0.1'],
      ...this.#serverSettings,
    };
    await writeFile(configPath, JSON.stringify(settings));
    this.#server = new TestProcess([join(ROOT, 'packages/server/main.ts'), configPath]);
    this.#addresses = await this.#server.ready();
    this.caPem = await readFile(join(this.folder, 'server/ca.pem'), 'utf8');
    this.operator = (await readFile(join(this.folder, 'server/operator.token'), 'utf8')).trim();
  }

  async killServer(): Promise<void> {
    await this.#server?.end('SIGKILL');
  }

  /** Settings for an agent of this cluster, with a join token that has not been used. */
  async settings(more: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
    const nodeName = String(more['nodeName'] ?? 'one');
    const folder = join(this.folder, nodeName);
    await mkdir(folder, { recursive: true });
    const joinTokenFile = join(folder, 'token');
    await writeFile(joinTokenFile, (await this.must('POST', '/v1/join-tokens', {})).secret);
    return {
      stateFolder: join(folder, 'state'),
      guestFolder: join(ROOT, 'build/guest'),
      apiUrl: `https://${this.#addresses['apiAddress']}`,
      caFile: join(this.folder, 'server/ca.pem'),
      joinTokenFile,
      nodeName,
      cgroupPath: this.cgroupPath,
      insecureRegistries: [this.registry.host],
      maxSandboxes: 16,
      firstUid: this.#firstUid,
      ...more,
    };
  }

  async startAgent(settings: Record<string, unknown>): Promise<TestProcess> {
    const configPath = join(this.folder, `${String(settings['nodeName'])}.json`);
    await writeFile(configPath, JSON.stringify(settings));
    const agent = new TestProcess([join(ROOT, 'packages/agent/main.ts'), configPath]);
    const known = this.#agents.find((other) => other.configPath === configPath);
    if (known) known.process = agent;
    else this.#agents.push({ configPath, process: agent });
    await agent.ready();
    return agent;
  }

  /** An agent that is expected to give up at once. */
  async refusedAgent(
    settings: Record<string, unknown>,
  ): Promise<{ exitCode: number | null; stderr: string }> {
    const configPath = join(this.folder, 'refused.json');
    await writeFile(configPath, JSON.stringify(settings));
    return await runUnchecked(process.execPath, [join(ROOT, 'packages/agent/main.ts'), configPath], {
      timeoutMs: START_TIMEOUT_MS,
    });
  }

  async teardown(nodeName: string, ...options: string[]): Promise<void> {
    const args = [
      join(ROOT, 'packages/agent/teardown.ts'),
      join(this.folder, `${nodeName}.json`),
      ...options,
    ];
    await run(process.execPath, args, { timeoutMs: START_TIMEOUT_MS });
  }

  async call(method: string, path: string, body?: unknown, token = this.operator): Promise<Reply> {
    const incoming = await this.#send(method, path, body, token);
    const text = (await incoming.toArray()).join('');
    return { status: incoming.statusCode ?? 0, body: text === '' ? undefined : JSON.parse(text) };
  }

  /** As `call`, for what must succeed. */
  async must(method: string, path: string, body?: unknown, token?: string): Promise<Reply['body']> {
    const reply = await this.call(method, path, body, token);
    if (reply.status >= 300)
      throw new Error(`${method} ${path}: ${reply.status} ${JSON.stringify(reply.body)}`);
    return reply.body;
  }

  async #send(method: string, path: string, body: unknown, token: string): Promise<IncomingMessage> {
    const outgoing = request(`https://${this.#addresses['apiAddress']}${path}`, {
      method,
      ca: this.caPem,
      agent: false,
      headers: {
        authorization: `Bearer ${token}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      },
    });
    outgoing.end(body === undefined ? undefined : JSON.stringify(body));
    const [incoming] = (await once(outgoing, 'response')) as [IncomingMessage];
    return incoming;
  }

  /** The id of the job's allocation. */
  async submit(spec: Record<string, unknown>, token?: string): Promise<string> {
    const resources = { cpuMilli: 500, memoryMiB: 128, diskMiB: 64 };
    const { allocations } = await this.must('POST', '/v1/jobs', { resources, ...spec }, token);
    return allocations[0].id;
  }

  /** Waits, by long polls, until the allocation is as wanted. */
  async until(id: string, wanted: (allocation: Allocation) => boolean, token?: string): Promise<Allocation> {
    for (let version = 0; ; ) {
      const path = `/v1/allocations/${id}?waitVersion=${version}`;
      const allocation: Allocation = await this.must('GET', path, undefined, token);
      if (wanted(allocation)) return allocation;
      if (isEnded(allocation.state)) {
        const logs = this.#agents.map(({ process }) => process.log).join('\n');
        throw new Error(`it is never as wanted: ${JSON.stringify(allocation)}\n${logs}`);
      }
      version = allocation.version;
    }
  }

  async ended(id: string, token?: string): Promise<Allocation> {
    return await this.until(id, ({ state }) => isEnded(state), token);
  }

  async logs(id: string, query = ''): Promise<string> {
    const incoming = await this.#send('GET', `/v1/allocations/${id}/logs${query}`, undefined, this.operator);
    const lines = (await incoming.toArray()).join('').split('\n').filter(Boolean);
    return lines.map((line) => Buffer.from(JSON.parse(line).data, 'base64').toString()).join('');
  }

  /** An attach or an exec, whose first message is `first`. */
  open(path: string, first?: object): TestStream {
    const socket = new WebSocket(`wss://${this.#addresses['apiAddress']}${path}`, {
      ca: this.caPem,
      headers: { authorization: `Bearer ${this.operator}` },
    });
    return new TestStream(socket, first);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await using ends = new AsyncDisposableStack(); // each step is taken, whichever fails
    ends.defer(async () => await rm(this.folder, { recursive: true, force: true }));
    ends.defer(async () => await this.registry.stop());
    ends.defer(async () => await this.killServer());
    for (const { configPath, process } of this.#agents) {
      ends.defer(async () => await this.teardown(basename(configPath, '.json'), '--purge'));
      ends.defer(async () => void (await process.end('SIGTERM')));
    }
  }
}

/** What comes through a WebSocket, in order: "started", "out:...", "err:...", then the last control message. */
export class TestStream {
  readonly socket: WebSocket;
  readonly heard: string[] = [];
  readonly end: Promise<Record<string, unknown>>;
  readonly #waiting = new Set<() => void>();

  constructor(socket: WebSocket, first?: object) {
    this.socket = socket;
    const { promise, resolve, reject } = Promise.withResolvers<Record<string, unknown>>();
    this.end = promise;
    promise.catch(() => {}); // whoever waits is told
    socket.on('open', () => first && socket.send(JSON.stringify(first)));
    socket.on('message', (data: Buffer) => {
      const [channel, text] = [data[0], data.subarray(1).toString()];
      if (channel === 3) {
        const control = JSON.parse(text) as Record<string, unknown>;
        this.heard.push(String(control['type']));
        if (control['type'] === 'exit' || control['type'] === 'error') resolve(control);
      } else this.heard.push(`${channel === 1 ? 'out' : 'err'}:${text}`);
      for (const wake of this.#waiting) wake();
    });
    socket.on('error', reject);
    socket.on('close', () => reject(new Error(`closed without an end: ${this.heard.join(' ')}`)));
  }

  /** Of standard output, so far. */
  get output(): string {
    return this.heard.map((each) => (each.startsWith('out:') ? each.slice(4) : '')).join('');
  }

  async says(text: string): Promise<void> {
    while (!this.output.includes(text)) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#waiting.add(resolve);
      await Promise.race([promise, this.end]);
      this.#waiting.delete(resolve);
    }
  }

  send(channel: number, payload: string | Buffer): void {
    this.socket.send(Buffer.concat([Buffer.from([channel]), Buffer.from(payload)]));
  }
}
