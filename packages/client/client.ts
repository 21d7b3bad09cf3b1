// The TypeScript SDK: one typed method for every route of the API.
//
// Every method throws an ApiError (a CloisterError with `hint`, `status` and, for a request that the API found
// wrong, `fields`), or the reason of the caller's AbortSignal. Answers take 30 s at most; streams end when their
// consumer leaves the loop, the signal is aborted or the server ends them.

import { readNdjson } from './ndjson.ts';
import type {
  Body,
  EmptyRoute,
  ExecSpecInput,
  JobSpecInput,
  JoinTokenInput,
  JsonRoute,
  Query,
  Reply,
  StreamRoute,
} from './routes.ts';
import { makePath, ROUTES } from './routes.ts';
import { type Call, Transport, type TransportOptions } from './transport.ts';
import { WorkloadStream } from './workloadStream.ts';

export interface CallOptions {
  /** Ends the call, or the stream; its reason is what the call throws. */
  readonly signal?: AbortSignal | undefined;
}

type Params = Readonly<Record<string, string>>;
interface Parts {
  readonly params?: Params;
  readonly query?: Readonly<Record<string, string | number | boolean | undefined>>;
  readonly body?: unknown;
  readonly timeoutMs?: number;
}

/** The server holds a waiting getAllocation for 30 s. */
const WAIT_TIMEOUT_MS = 45_000;
/** A pull may wait for its turn on a node before it says anything. */
const PULL_TIMEOUT_MS = 120_000;

export class CloisterClient {
  readonly #transport: Transport;

  constructor(options: TransportOptions) {
    this.#transport = new Transport(options);
  }

  /** Closes all connections, streams with them. */
  close(): void {
    this.#transport.close();
  }

  health(options: CallOptions = {}): Promise<Reply<'health'>> {
    return this.#json('health', {}, options);
  }

  /** Whose token this is, and what it may do. */
  whoami(options: CallOptions = {}): Promise<Reply<'whoami'>> {
    return this.#json('whoami', {}, options);
  }

  /** Runs an image. Answers as soon as the job is recorded; its allocations are then `pending`. Not repeated on a broken connection: give a `name` to be able to tell. */
  createJob(spec: JobSpecInput, options: CallOptions = {}): Promise<Reply<'createJob'>> {
    return this.#json('createJob', { body: spec }, options);
  }

  /** Newest first. */
  listJobs(query: Query<'listJobs'> = {}, options: CallOptions = {}): Promise<Reply<'listJobs'>> {
    return this.#json('listJobs', { query }, options);
  }

  /** `job`, here and below: its id or its name. */
  getJob(job: string, options: CallOptions = {}): Promise<Reply<'getJob'>> {
    return this.#json('getJob', { params: { job } }, options);
  }

  /** The stop signal, `graceMs` (0 to 600,000; default: the job's own), then a kill. Does not wait for the end. */
  stopJob(job: string, body: Body<'stopJob'> = {}, options: CallOptions = {}): Promise<Reply<'stopJob'>> {
    return this.#json('stopJob', { params: { job }, body }, options);
  }

  /** Ends the job's machines at once. Does not wait for the end. */
  killJob(job: string, options: CallOptions = {}): Promise<Reply<'killJob'>> {
    return this.#json('killJob', { params: { job } }, options);
  }

  /** `signal`: 1 to 64, by Linux's numbers. */
  signalJob(job: string, signal: number, options: CallOptions = {}): Promise<void> {
    return this.#empty('signalJob', { params: { job }, body: { signal } }, options);
  }

  /** Removes a job that ended, with its logs; with `force`, kills it first. */
  removeJob(job: string, query: Query<'removeJob'> = {}, options: CallOptions = {}): Promise<void> {
    return this.#empty('removeJob', { params: { job }, query }, options);
  }

  /** Newest first. */
  listAllocations(
    query: Query<'listAllocations'> = {},
    options: CallOptions = {},
  ): Promise<Reply<'listAllocations'>> {
    return this.#json('listAllocations', { query }, options);
  }

  /** With `waitVersion`, answers when the version is higher than that, or after 30 s. */
  getAllocation(
    allocation: string,
    query: Query<'getAllocation'> = {},
    options: CallOptions = {},
  ): Promise<Reply<'getAllocation'>> {
    return this.#json(
      'getAllocation',
      { params: { allocation }, query, timeoutMs: WAIT_TIMEOUT_MS },
      options,
    );
  }

  /** What the workload wrote, oldest first. `data` is base64. With `follow`, until the workload ends. */
  logs(
    allocation: string,
    query: Query<'logs'> = {},
    options: CallOptions = {},
  ): AsyncGenerator<Reply<'logs'>, void, undefined> {
    return this.#stream('logs', { params: { allocation }, query }, options);
  }

  /** The workload's output from its first byte, and with `stdin` its input. Waits for the start: see `started`. */
  attach(
    allocation: string,
    query: Query<'attach'> = {},
    options: CallOptions = {},
  ): Promise<WorkloadStream> {
    return this.#connect('attach', { params: { allocation }, query }, 'attach', options);
  }

  /** Runs one more process in a running allocation. */
  async exec(allocation: string, spec: ExecSpecInput, options: CallOptions = {}): Promise<WorkloadStream> {
    const defaults = { env: {}, tty: false, stdin: false, rows: 0, columns: 0 };
    return await this.#connect(
      'exec',
      { params: { allocation }, body: { ...defaults, ...spec } },
      'exec',
      options,
    );
  }

  /** What happened, by `revision`; with `after`, later than that one; with `follow`, without an end. */
  events(
    query: Query<'events'> = {},
    options: CallOptions = {},
  ): AsyncGenerator<Reply<'events'>, void, undefined> {
    return this.#stream('events', { query }, options);
  }

  listNodes(options: CallOptions = {}): Promise<Reply<'listNodes'>> {
    return this.#json('listNodes', {}, options);
  }

  /** `node`, here and below: its id or its name. */
  getNode(node: string, options: CallOptions = {}): Promise<Reply<'getNode'>> {
    return this.#json('getNode', { params: { node } }, options);
  }

  cordonNode(node: string, options: CallOptions = {}): Promise<Reply<'cordonNode'>> {
    return this.#json('cordonNode', { params: { node } }, options);
  }

  uncordonNode(node: string, options: CallOptions = {}): Promise<Reply<'uncordonNode'>> {
    return this.#json('uncordonNode', { params: { node } }, options);
  }

  /** Forgets a machine that is down. */
  removeNode(node: string, options: CallOptions = {}): Promise<void> {
    return this.#empty('removeNode', { params: { node } }, options);
  }

  /** A secret with which one machine can join, once, within `ttlMs` (1 to 86,400,000; default an hour). */
  createJoinToken(body: JoinTokenInput = {}, options: CallOptions = {}): Promise<Reply<'createJoinToken'>> {
    return this.#json('createJoinToken', { body }, options);
  }

  /** Joins as a machine. Needs no valid token but the one in the body. */
  join(body: Body<'join'>, options: CallOptions = {}): Promise<Reply<'join'>> {
    return this.#json('join', { body }, options);
  }

  listImages(options: CallOptions = {}): Promise<Reply<'listImages'>> {
    return this.#json('listImages', {}, options);
  }

  /** Pulls to one node (id or name) or to all workers. Ends when each node said `done` or `failed`. */
  pullImage(
    body: Body<'pullImage'>,
    options: CallOptions = {},
  ): AsyncGenerator<Reply<'pullImage'>, void, undefined> {
    return this.#stream('pullImage', { body, timeoutMs: PULL_TIMEOUT_MS }, options);
  }

  listTenants(options: CallOptions = {}): Promise<Reply<'listTenants'>> {
    return this.#json('listTenants', {}, options);
  }

  createTenant(body: Body<'createTenant'>, options: CallOptions = {}): Promise<Reply<'createTenant'>> {
    return this.#json('createTenant', { body }, options);
  }

  /** `secret` is in this answer and nowhere else, ever. `ttlMs`: at least 1,000; default: it does not expire. */
  createToken(
    tenant: string,
    body: Body<'createToken'> = {},
    options: CallOptions = {},
  ): Promise<Reply<'createToken'>> {
    return this.#json('createToken', { params: { tenant }, body }, options);
  }

  revokeToken(token: string, options: CallOptions = {}): Promise<void> {
    return this.#empty('revokeToken', { params: { token } }, options);
  }

  listTokens(tenant: string, options: CallOptions = {}): Promise<Reply<'listTokens'>> {
    return this.#json('listTokens', { params: { tenant } }, options);
  }

  // The server's answers are taken at their word: it is authenticated, and a newer one may add fields.
  async #json<Name extends JsonRoute>(name: Name, parts: Parts, options: CallOptions): Promise<Reply<Name>> {
    return (await this.#transport.json(toCall(name, parts, options))) as Reply<Name>;
  }

  async #empty(name: EmptyRoute, parts: Parts, options: CallOptions): Promise<void> {
    await this.#transport.json(toCall(name, parts, options));
  }

  async *#stream<Name extends StreamRoute>(
    name: Name,
    parts: Parts,
    options: CallOptions,
  ): AsyncGenerator<Reply<Name>, void, undefined> {
    const call = toCall(name, parts, options);
    yield* readNdjson<Reply<Name>>(await this.#transport.stream(call), call.what, options.signal);
  }

  async #connect(
    name: 'attach' | 'exec',
    parts: Parts,
    what: string,
    options: CallOptions,
  ): Promise<WorkloadStream> {
    const { openSocket } = await import('./openSocket.ts');
    const socket = await openSocket(
      this.#transport,
      makePath(name, parts.params, parts.query),
      what,
      options.signal,
    );
    const workload = new WorkloadStream(socket, what, options.signal);
    if (parts.body !== undefined) socket.send(JSON.stringify(parts.body));
    socket.resume();
    return workload;
  }
}

function toCall(name: JsonRoute | EmptyRoute | StreamRoute, parts: Parts, options: CallOptions): Call {
  return {
    method: ROUTES[name].method,
    path: makePath(name, parts.params, parts.query),
    what: name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`),
    body: parts.body,
    signal: options.signal,
    ...(parts.timeoutMs === undefined ? {} : { timeoutMs: parts.timeoutMs }),
  };
}
