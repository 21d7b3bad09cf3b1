// For tests: a small server that answers by the API table and refuses what its schemas refuse, over HTTPS and
// WebSockets, with invented workloads instead of machines.

import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { createAuthority, issueServerCertificate } from '@cloister/link/pki.ts';
import { API, type ApiName, type Route } from '@cloister/model/api.ts';
import { CloisterError, ERROR_CODES } from '@cloister/model/errors.ts';
import type { Event } from '@cloister/model/event.ts';
import { newAllocationId, newJobId, newNodeId, newTenantId, newTokenId } from '@cloister/model/ids.ts';
import type { Allocation, Job, JobSpec } from '@cloister/model/job.ts';
import type { Node } from '@cloister/model/node.ts';
import type { TSchema } from 'typebox';
import { Value } from 'typebox/value';
import { type WebSocket, WebSocketServer } from 'ws';
import { type Running, serveProcess } from './testWorkloads.ts';

export class TestServer {
  readonly token = 'test-token-0123456789';
  readonly jobs: Running[] = [];
  readonly nodeId = newNodeId();
  readonly tenantId = newTenantId();
  /** Every request as "METHOD /path", and every signal that a process got. */
  readonly requests: string[] = [];
  readonly signals: number[] = [];
  readonly resizes: string[] = [];
  /** Output that the network took. */
  sentBytes = 0;
  pongs = 0;
  events: Event[] = [];
  /** Answers instead of the routes, when set. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined;
  caPem = '';
  url = '';
  #server: Server | undefined;
  readonly #sockets = new WebSocketServer({ noServer: true, maxPayload: 65_537, perMessageDeflate: false });
  #changed = new Set<() => void>();

  static async start(): Promise<TestServer> {
    const server = new TestServer();
    const authority = await createAuthority();
    const issued = await issueServerCertificate(authority, ['127.0.0.1', 'localhost']);
    server.caPem = authority.certificatePem;
    await server.#listen(issued.keyPem, issued.certificatePem);
    return server;
  }

  async #listen(key: string, cert: string): Promise<void> {
    this.#server = createServer({ key, cert }, (request, response) => void this.#serve(request, response));
    this.#server.on('upgrade', (request, socket, head) => {
      try {
        const { name, params, query } = this.#route(request);
        const record = this.find(params['allocation'] ?? '');
        this.#sockets.handleUpgrade(request, socket, head, (ws: WebSocket) =>
          serveProcess(this, ws, name, record, query),
        );
      } catch (error) {
        const { status, body } = problem(error);
        socket.end(
          `HTTP/1.1 ${status} Refused\r\ncontent-type: application/problem+json\r\nconnection: close\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
        );
      }
    });
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.listen(0, '127.0.0.1', resolve);
    await promise;
    this.url = `https://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server?.close(() => resolve());
    this.#server?.closeAllConnections();
    for (const wake of this.#changed) wake();
    await promise;
  }

  find(key: string): Running {
    const record = this.jobs.find(
      ({ job, allocation }) => job.id === key || job.name === key || allocation.id === key,
    );
    if (!record) throw new CloisterError('not-found', `There is no "${key}".`);
    return record;
  }

  update(record: Running, change: Partial<Allocation>): void {
    record.allocation = { ...record.allocation, ...change, version: record.allocation.version + 1 };
    const ended = ['exited', 'failed', 'lost'].includes(record.allocation.state);
    record.job = { ...record.job, state: ended ? 'done' : record.job.state };
    this.changed();
  }

  /** Breaks every WebSocket, as a server does that is killed. */
  dropSockets(): void {
    for (const socket of this.#sockets.clients) socket.terminate();
  }

  changed(): void {
    for (const wake of [...this.#changed]) wake();
  }

  /** Resolves when the condition holds; it is asked at each change. */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#changed.add(resolve);
      await promise;
      this.#changed.delete(resolve);
    }
  }

  addJob(
    spec: Partial<JobSpec> & { image: string },
    state: Allocation['state'] = 'running',
    more: Partial<Allocation> = {},
  ): Running {
    const full = withDefaults(API.createJob.body, spec) as JobSpec;
    const base = { tenantId: this.tenantId, createdAt: Date.now() - 120_000, version: 1 };
    const id = newJobId();
    const job: Job = {
      ...base,
      id,
      name: spec.name ?? `calm-${id.slice(4, 8)}`,
      spec: full,
      state: 'active',
    };
    const allocation: Allocation = {
      ...base,
      id: newAllocationId(),
      jobId: id,
      index: 0,
      attempt: 0,
      nodeId: this.nodeId,
      state,
      desired: 'run',
      timeline: {},
      ...more,
    };
    const record = { job, allocation };
    this.jobs.unshift(record);
    this.changed();
    return record;
  }

  #route(request: IncomingMessage): {
    name: ApiName;
    params: Record<string, string>;
    query: Record<string, unknown>;
  } {
    const url = new URL(request.url ?? '/', 'https://x');
    this.requests.push(`${request.method} ${url.pathname}`);
    for (const [name, route] of Object.entries(API) as [ApiName, Route][]) {
      const match = new RegExp(`^${route.path.replace(/:([a-z]+)/g, '(?<$1>[^/]+)')}$`).exec(url.pathname);
      if (!match || route.method !== request.method) continue;
      const query: unknown = Value.Convert(route.query ?? {}, Object.fromEntries(url.searchParams));
      if (route.query && !Value.Check(route.query, query))
        throw new CloisterError('request.invalid', 'The query is invalid.');
      if (route.access !== 'none' && request.headers.authorization !== `Bearer ${this.token}`) {
        throw new CloisterError('auth.invalid', 'The token is not valid.');
      }
      return { name, params: { ...match.groups }, query: query as Record<string, unknown> };
    }
    throw new CloisterError('not-found', `There is no ${url.pathname}.`);
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      if (this.intercept?.(request, response)) return;
      const { name, params, query } = this.#route(request);
      let text = '';
      for await (const chunk of request) text += chunk;
      const schema = (API[name] as Route).body;
      const body: unknown = schema
        ? withDefaults(schema, text === '' ? undefined : JSON.parse(text))
        : undefined;
      if (schema && !Value.Check(schema, body)) {
        const fields = [...Value.Errors(schema, body)].map((error) => ({
          path: error.instancePath,
          message: error.message,
        }));
        throw new CloisterError('request.invalid', 'The request is invalid.', { fields });
      }
      await this.#answer(name, params, query, body as Record<string, unknown>, response);
    } catch (error) {
      const { status, body } = problem(error);
      response.writeHead(status, { 'content-type': 'application/problem+json' }).end(body);
    }
  }

  async #answer(
    name: ApiName,
    params: Record<string, string>,
    query: Record<string, unknown>,
    body: Record<string, unknown>,
    response: ServerResponse,
  ): Promise<void> {
    const reply = (API[name] as Route).reply;
    if (reply.kind === 'stream') {
      response.writeHead(200, { 'content-type': 'application/x-ndjson' });
      for (const item of this.#items(name, params, body)) {
        if (!response.write(`${JSON.stringify(item)}\n`))
          await new Promise((resolve) => response.once('drain', resolve));
      }
      response.end();
      return;
    }
    const value = await this.#handle(name, params, query, body);
    if (reply.kind === 'json')
      response.writeHead(reply.status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
    else response.writeHead(204).end();
  }

  #items(name: ApiName, params: Record<string, string>, body: Record<string, unknown>): unknown[] {
    if (name === 'events') return this.events;
    if (name === 'logs') {
      this.find(params['allocation'] ?? '');
      const line = (stream: string, data: string) => ({
        at: 1_700_000_000_000,
        stream,
        data: Buffer.from(data).toString('base64'),
      });
      return [line('stdout', 'first li'), line('stderr', 'oops\n'), line('stdout', 'ne\nsecond\n')];
    }
    const base = { reference: body['reference'], nodeId: this.nodeId, totalBytes: 42_000_000 };
    const end =
      body['reference'] === 'nothere'
        ? { stage: 'failed', reason: { code: 'image.not-found', message: 'There is no image nothere.' } }
        : { stage: 'done', digest: `sha256:${'a'.repeat(64)}` };
    return [
      { ...base, stage: 'fetching', fetchedBytes: 13_000_000 },
      { ...base, fetchedBytes: 42_000_000, ...end },
    ];
  }

  async #handle(
    name: ApiName,
    params: Record<string, string>,
    query: Record<string, unknown>,
    body: Record<string, unknown>,
  ): Promise<unknown> {
    const both = ({ job, allocation }: Running) => ({ job, allocations: [allocation] });
    switch (name) {
      case 'health':
        return { status: 'ok', version: '0.1.0' };
      case 'whoami':
        return { tenant: { id: this.tenantId, name: 'test', createdAt: 0 }, scope: 'operator' };
      case 'createJob':
        return both(this.#create(body as unknown as JobSpec));
      case 'listJobs':
        return {
          jobs: this.jobs
            .filter(({ job }) => query['state'] === undefined || job.state === query['state'])
            .map(both),
        };
      case 'getJob':
        return both(this.find(params['job'] ?? ''));
      case 'stopJob':
      case 'killJob': {
        const record = this.find(params['job'] ?? '');
        this.update(record, {
          desired: name === 'stopJob' ? 'stop' : 'kill',
          state: 'exited',
          exitCode: 137,
          signal: 9,
        });
        return both(record);
      }
      case 'signalJob':
        this.signals.push(Number(body['signal']));
        return undefined;
      case 'removeJob': {
        const record = this.find(params['job'] ?? '');
        if (record.job.state !== 'done' && query['force'] !== true)
          throw new CloisterError('state.wrong', `Job ${record.job.name} is not over.`);
        this.jobs.splice(this.jobs.indexOf(record), 1);
        return undefined;
      }
      case 'listAllocations':
        return { allocations: this.jobs.map(({ allocation }) => allocation) };
      case 'getAllocation': {
        const record = this.find(params['allocation'] ?? '');
        const seen = query['waitVersion'];
        if (typeof seen === 'number')
          await this.until(() => record.allocation.version > seen || !this.#server?.listening);
        return record.allocation;
      }
      case 'listNodes':
        return { nodes: [this.node()] };
      case 'getNode':
      case 'cordonNode':
      case 'uncordonNode':
        if (![this.nodeId as string, 'worker-1'].includes(params['node'] ?? ''))
          throw new CloisterError('not-found', 'There is no such node.');
        return { ...this.node(), cordoned: name === 'cordonNode' };
      case 'createJoinToken':
        return { secret: 'join-secret', role: 'worker', expiresAt: Date.now() + 3_600_000 };
      case 'listImages':
        return {
          images: [
            {
              reference: 'docker.io/library/busybox:latest',
              digest: `sha256:${'b'.repeat(64)}`,
              nodeId: this.nodeId,
              sizeBytes: 2_200_000,
              blockBytes: 4_400_000,
              pulledAt: Date.now() - 60_000,
            },
          ],
        };
      case 'listTenants':
        return { tenants: [{ id: this.tenantId, name: 'test', createdAt: 0 }] };
      case 'createTenant':
        return { id: newTenantId(), name: body['name'], createdAt: Date.now() };
      case 'createToken':
        return {
          token: {
            id: newTokenId(),
            tenantId: this.tenantId,
            scope: body['scope'] ?? 'tenant',
            createdAt: Date.now(),
          },
          secret: 'new-secret',
        };
      case 'listTokens':
        return { tokens: [{ id: newTokenId(), tenantId: this.tenantId, scope: 'tenant', createdAt: 0 }] };
      default:
        if (name === 'removeNode' || name === 'revokeToken') return undefined;
        throw new CloisterError('not-found', `${name} is not served here.`);
    }
  }

  #create(spec: JobSpec): Running {
    if (spec.name !== undefined && this.jobs.some(({ job }) => job.name === spec.name)) {
      throw new CloisterError('name.taken', `There is a job "${spec.name}" already.`);
    }
    const word = spec.command?.[0];
    if (word === 'missing' || word === 'directory') {
      const code = word === 'missing' ? 'sandbox.command-not-found' : 'sandbox.command-not-executable';
      return this.addJob(spec, 'failed', { reason: { code, message: `"${word}" cannot be run.` } });
    }
    if (spec.image === 'unplaceable') {
      const reason = { code: 'unavailable', message: 'No node fits: 3 of 3 are full.' };
      return this.addJob(spec, 'pending', { reason });
    }
    return this.addJob(spec, 'running');
  }

  node(): Node {
    const capacity = {
      cpuMilli: 4000,
      memoryMiB: 8192,
      diskMiB: 100_000,
      sandboxes: 100,
      sandboxOverheadMiB: 32,
    };
    return {
      id: this.nodeId,
      name: 'worker-1',
      role: 'worker',
      labels: {},
      health: 'ready',
      cordoned: false,
      capacity,
      used: { cpuMilli: 1000, memoryMiB: 256, diskMiB: 1024, sandboxes: 1 },
      joinedAt: Date.now() - 86_400_000,
      version: 1,
    };
  }
}

/** The resources are filled in by hand: their schema is of a kind that Value.Default does not look into. */
function withDefaults(schema: TSchema, value: unknown): unknown {
  const whole = Value.Default(schema, value) as Record<string, unknown> | undefined;
  if (schema !== API.createJob.body || typeof whole !== 'object') return whole;
  return {
    ...whole,
    resources: { cpuMilli: 1000, memoryMiB: 256, diskMiB: 1024, ...(whole['resources'] as object) },
  };
}

function problem(error: unknown): { status: number; body: string } {
  const known = error instanceof CloisterError ? error : new CloisterError('internal', String(error));
  const { status, hint } = ERROR_CODES[known.code];
  const body = {
    type: `urn:cloister:error:${known.code}`,
    title: known.code,
    status,
    detail: known.message,
    code: known.code,
    hint,
    ...(known.fields.length > 0 ? { errors: known.fields } : {}),
  };
  return { status, body: JSON.stringify(body) };
}
