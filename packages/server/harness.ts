// For tests: a real control plane on any free ports in a folder of its own, a real HTTPS client, and an agent that
// speaks the real protocol but runs nothing.
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLogger } from '@cloister/kit/log.ts';
import { connectLink, type LinkSession } from '@cloister/link/clientLink.ts';
import { joinCluster } from '@cloister/link/join.ts';
import type {
  AllocationStatus,
  Assignment,
  Hello,
  OpenStream,
  ServerMessage,
} from '@cloister/link/messages.ts';
import { newAgentInstanceId } from '@cloister/model/ids.ts';
import type { Allocation, Job } from '@cloister/model/job.ts';
import { WebSocket } from 'ws';
import { type Server, startServer } from './server.ts';
import type { Frames } from './sessions.ts';

export interface Reply {
  readonly status: number;
  // A test looks into whatever came back.
  // biome-ignore lint/suspicious/noExplicitAny: tests read answers freely
  readonly body: any;
}

export interface TestCluster {
  readonly server: Server;
  readonly dataDir: string;
  readonly caPem: string;
  readonly operator: string;
  call(method: string, path: string, body?: unknown, token?: string | null): Promise<Reply>;
  /** The NDJSON lines of a stream, as they come. */
  lines(path: string, token?: string): AsyncGenerator<Record<string, unknown>>;
  /** An open WebSocket; rejects with the status and body when it is refused. */
  open(path: string, token?: string): Promise<WebSocket>;
  newTenant(name: string): Promise<string>;
  newAgent(name: string, options?: AgentOptions): Promise<TestAgent>;
  run(spec: Record<string, unknown>, token?: string): Promise<{ job: Job; allocations: Allocation[] }>;
  allocation(id: string, token?: string): Promise<Allocation>;
  /** Waits, by long polls, until the allocation is as wanted. */
  whenAllocation(
    id: string,
    wanted: (allocation: Allocation) => boolean,
    token?: string,
  ): Promise<Allocation>;
  [Symbol.asyncDispose](): Promise<void>;
}

export async function startTestCluster(settings: Record<string, unknown> = {}): Promise<TestCluster> {
  const dataDir = await mkdtemp(join(tmpdir(), 'cloister-server-'));
  const server = await startServer(
    {
      dataDir,
      api: { port: 0 },
      link: { port: 0 },
      names: ['127.0.0.1', 'localhost'],
      serviceBackoffMs: 20,
      ...settings,
    },
    { logger: silentLogger },
  );
  return await testClient(server, dataDir, async () => {
    await server.close();
    await rm(dataDir, { recursive: true, force: true });
  });
}

/** Talks to a server that somebody else started. */
export async function testClient(
  server: Server,
  dataDir: string,
  dispose: () => Promise<void>,
): Promise<TestCluster> {
  const caPem = await readFile(join(dataDir, 'ca.pem'), 'utf8');
  const operator = (await readFile(join(dataDir, 'operator.token'), 'utf8')).trim();
  const agents: TestAgent[] = [];
  const call: TestCluster['call'] = async (method, path, body, token = operator) => {
    const incoming = await send(server, caPem, method, path, body, token);
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk as Buffer);
    const text = Buffer.concat(chunks).toString();
    return { status: incoming.statusCode ?? 0, body: text === '' ? undefined : JSON.parse(text) };
  };
  const must = async (reply: Promise<Reply>): Promise<Reply['body']> => {
    const { status, body } = await reply;
    if (status >= 300) throw new Error(`${status} ${JSON.stringify(body)}`);
    return body;
  };
  return {
    server,
    dataDir,
    caPem,
    operator,
    call,
    async *lines(path, token = operator) {
      let rest = '';
      for await (const chunk of await send(server, caPem, 'GET', path, undefined, token)) {
        const lines = `${rest}${(chunk as Buffer).toString()}`.split('\n');
        rest = lines.pop() ?? '';
        for (const line of lines) yield JSON.parse(line);
      }
    },
    open: async (path, token = operator) => {
      const socket = new WebSocket(`wss://${server.apiAddress}${path}`, {
        ca: caPem,
        headers: { authorization: `Bearer ${token}` },
      });
      const { promise, resolve, reject } = Promise.withResolvers<WebSocket>();
      socket.on('open', () => resolve(socket));
      socket.on('error', reject);
      socket.on('unexpected-response', async (_request, response) => {
        let text = '';
        for await (const chunk of response) text += chunk;
        reject(new Error(`${response.statusCode} ${text}`));
      });
      return await promise;
    },
    newTenant: async (name) => {
      await must(call('POST', '/v1/tenants', { name }));
      return (await must(call('POST', `/v1/tenants/${name}/tokens`, {}))).secret;
    },
    newAgent: async (name, options = {}) => {
      const { secret } = await must(call('POST', '/v1/join-tokens', {}));
      const instanceId = newAgentInstanceId();
      const identity = await joinCluster({
        apiUrl: `https://${server.apiAddress}`,
        caPem,
        token: secret,
        nodeName: name,
        instanceId,
      });
      const agent = new TestAgent({ ...identity, address: server.linkAddress, instanceId }, options);
      agents.push(agent);
      await agent.connect();
      return agent;
    },
    run: async (spec, token) => must(call('POST', '/v1/jobs', { image: 'busybox', ...spec }, token)),
    allocation: async (id, token) => must(call('GET', `/v1/allocations/${id}`, undefined, token)),
    whenAllocation: async (id, wanted, token) => {
      for (let version = 0; ; ) {
        const path = `/v1/allocations/${id}?waitVersion=${version}`;
        const allocation: Allocation = await must(call('GET', path, undefined, token));
        if (wanted(allocation)) return allocation;
        version = allocation.version;
      }
    },
    [Symbol.asyncDispose]: async () => {
      for (const agent of agents) agent.disconnect();
      await dispose();
    },
  };
}

async function send(
  server: Server,
  caPem: string,
  method: string,
  path: string,
  body: unknown,
  token: string | null,
): Promise<IncomingMessage> {
  const text = body === undefined ? undefined : JSON.stringify(body);
  return await new Promise((resolve, reject) => {
    const outgoing = request(`https://${server.apiAddress}${path}`, {
      method,
      ca: caPem,
      agent: false,
      headers: {
        ...(token === null ? {} : { authorization: `Bearer ${token}` }),
        ...(text === undefined ? {} : { 'content-type': 'application/json' }),
      },
    });
    outgoing.on('response', resolve);
    outgoing.on('error', reject);
    outgoing.end(text);
  });
}

export interface AgentOptions {
  readonly capacity?: Record<string, number>;
  readonly clockSkewMs?: number;
  /** What it does with a new assignment. Default: reports that it runs. */
  readonly onAssignment?: (agent: TestAgent, assignment: Assignment) => void;
  /** Before it opens a bulk stream that it was asked for. */
  readonly beforeStream?: () => Promise<void>;
  /** Serves a bulk stream. Default: ends it at once. */
  readonly onStream?: (frames: Frames, asked: OpenStream, agent: TestAgent) => Promise<void>;
}

interface AgentIdentity {
  readonly nodeId: string;
  readonly certificatePem: string;
  readonly keyPem: string;
  readonly caPem: string;
  readonly address: string;
  readonly instanceId: string;
}

export class TestAgent {
  readonly identity: AgentIdentity;
  readonly options: AgentOptions;
  /** Everything that the server said, in order. */
  readonly heard: ServerMessage[] = [];
  session: LinkSession | undefined;
  #sequence = 0;
  #waiters: (() => void)[] = [];

  constructor(identity: AgentIdentity, options: AgentOptions) {
    this.identity = identity;
    this.options = options;
  }

  /** Dials and says hello; returns when all assignments were told, or the session was refused. */
  async connect(instanceId = this.identity.instanceId): Promise<void> {
    const session = await connectLink(this.identity);
    this.session = session;
    const from = this.heard.length;
    void this.#listen(session);
    await session.send({ message: 'hello', hello: this.#hello(instanceId) });
    await this.when((message) => message.message === 'complete' || message.message === 'refused', from);
  }

  disconnect(): void {
    this.session?.close();
  }

  async report(allocationId: string, state: string, more: Partial<AllocationStatus> = {}): Promise<void> {
    this.#sequence += 1;
    const status: AllocationStatus = {
      allocationId,
      sequence: this.#sequence,
      state,
      oomKilled: false,
      reasonCode: '',
      reasonMessage: '',
      imageDigest: '',
      timelineJson: '{}',
      ...more,
    };
    await this.session?.send({ message: 'status', status });
  }

  /** The first message, from an index on, that is as wanted; waits for it. */
  async when(wanted: (message: ServerMessage) => boolean, from = 0): Promise<ServerMessage> {
    for (;;) {
      const found = this.heard.slice(from).find(wanted);
      if (found) return found;
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  async #listen(session: LinkSession): Promise<void> {
    try {
      for await (const message of session) {
        this.heard.push(message);
        for (const wake of this.#waiters.splice(0)) wake();
        if (message.message === 'assignment') this.#assigned(message.assignment);
        if (message.message === 'openStream') void this.#serve(session, message.openStream);
        if (message.message === 'signal') {
          const { requestId } = message.signal;
          await session.send({
            message: 'signalResult',
            signalResult: { requestId, errorCode: '', errorMessage: '' },
          });
        }
      }
    } catch {
      // the session is over
    }
  }

  #assigned(assignment: Assignment): void {
    if (assignment.keep) return;
    if (this.options.onAssignment) this.options.onAssignment(this, assignment);
    else if (assignment.desired === 'run') void this.report(assignment.allocationId, 'running');
    else void this.report(assignment.allocationId, 'exited', { exitCode: 137, signal: 9 });
  }

  async #serve(session: LinkSession, asked: OpenStream): Promise<void> {
    try {
      await this.options.beforeStream?.();
      const frames = await session.openStream(asked.streamId);
      await this.options.onStream?.(frames, asked, this);
      frames.end();
    } catch {
      // the other side was faster to leave
    }
  }

  #hello(instanceId: string): Hello {
    const facts = {
      hostname: 'test',
      architecture: 'amd64',
      hostKernel: '6',
      guestKernel: '6',
      vmm: 'none',
      acceleration: 'tcg',
      agentVersion: '0',
    };
    const capacity = {
      cpuMilli: 100_000,
      memoryMiB: 100_000,
      diskMiB: 1_000_000,
      sandboxes: 1_000,
      sandboxOverheadMiB: 0,
      ...this.options.capacity,
    };
    return {
      instanceId,
      factsJson: JSON.stringify(facts),
      capacityJson: JSON.stringify(capacity),
      clockMs: Date.now() + (this.options.clockSkewMs ?? 0),
      protocolVersion: 1,
    };
  }
}
