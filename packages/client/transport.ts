// HTTPS to one cluster: its own certificate authority and no other, kept-alive connections, time limits on
// everything, bounded answers, and no redirects: a credential goes to the host it was meant for.
import type { IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import { CloisterError } from '@cloister/model/errors.ts';
import { ApiError, connectionError, problemToError } from './apiError.ts';

export interface TransportOptions {
  /** "https://HOST:PORT", nothing behind it. */
  readonly url: string;
  /** The cluster's certificate authority, PEM. The system's authorities are not trusted. */
  readonly caPem: string;
  /** Sent as a bearer token with every request. */
  readonly token: string;
  /** From the call to the last byte of an answer, and to the first byte of a stream. Milliseconds; default 30,000. */
  readonly timeoutMs?: number;
}

export interface Call {
  readonly method: string;
  readonly path: string;
  /** Sent as JSON. */
  readonly body?: unknown;
  /** What is being done, for errors: "list jobs". */
  readonly what: string;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

export const DEFAULT_TIMEOUT_MS = 30_000;
/** Of one JSON answer. A list of 10,000 jobs is a tenth of it. */
const MAX_REPLY_BYTES = 256 * 1024 * 1024;
const MAX_PROBLEM_BYTES = 65_536;
const MAX_SOCKETS = 32;
/** How often the kernel checks a silent connection, so that a stream from a vanished host ends. */
const KEEPALIVE_MS = 15_000;

export class Transport {
  readonly origin: URL;
  readonly caPem: string;
  readonly #token: string;
  readonly #timeoutMs: number;
  readonly #agent: Agent;

  constructor(options: TransportOptions) {
    this.origin = parseOrigin(options.url);
    this.caPem = options.caPem;
    if (!/^[\x21-\x7e]{1,4096}$/.test(options.token)) {
      throw new CloisterError('auth.invalid', 'The token is empty or has characters that no token has.');
    }
    this.#token = options.token;
    this.#timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    this.#agent = new Agent({
      ca: options.caPem,
      minVersion: 'TLSv1.3',
      keepAlive: true,
      keepAliveMsecs: KEEPALIVE_MS,
      maxSockets: MAX_SOCKETS,
    });
  }

  get authorization(): string {
    return `Bearer ${this.#token}`;
  }

  /** One JSON answer; undefined when it has no body. */
  async json(call: Call): Promise<unknown> {
    const limit = AbortSignal.timeout(call.timeoutMs ?? this.#timeoutMs);
    const signal = call.signal ? AbortSignal.any([call.signal, limit]) : limit;
    try {
      const response = await this.#open(call, signal);
      const text = await readText(response, MAX_REPLY_BYTES, call.what);
      if (text === '') return undefined;
      return JSON.parse(text) as unknown;
    } catch (error) {
      throw this.#explain(error, call, limit);
    }
  }

  /** An answer whose body is read as it comes. The time limit is for its beginning only; end it with the signal, or destroy it. */
  async stream(call: Call): Promise<IncomingMessage> {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(new Error('time limit')), call.timeoutMs ?? this.#timeoutMs);
    const signal = call.signal ? AbortSignal.any([call.signal, limit.signal]) : limit.signal;
    try {
      return await this.#open(call, signal);
    } catch (error) {
      throw this.#explain(error, call, limit.signal);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Closes the connections, open answers with them. */
  close(): void {
    this.#agent.destroy();
  }

  async #open(call: Call, signal: AbortSignal): Promise<IncomingMessage> {
    signal.throwIfAborted();
    const body = call.body === undefined ? undefined : Buffer.from(JSON.stringify(call.body));
    // A kept-alive connection may have been closed by the server a moment ago. Asking again is safe for reads only.
    for (let attempt = 0; ; attempt++) {
      const outcome = await this.#send(call, body, signal);
      if (outcome !== 'stale') return await refuseFailures(outcome, call.what);
      if (attempt > 0 || call.method !== 'GET') {
        throw new ApiError(
          'unavailable',
          `${call.what} failed: ${this.origin.host} closed the connection before it answered.`,
        );
      }
    }
  }

  #send(call: Call, body: Buffer | undefined, signal: AbortSignal): Promise<IncomingMessage | 'stale'> {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage | 'stale'>();
    const outgoing = request(new URL(call.path, this.origin), {
      method: call.method,
      agent: this.#agent,
      signal,
      headers: {
        authorization: this.authorization,
        accept: 'application/json, application/x-ndjson, application/problem+json',
        'user-agent': 'cloister-client/0.1.0',
        ...(body ? { 'content-type': 'application/json', 'content-length': body.length } : {}),
      },
    });
    outgoing.once('response', resolve);
    outgoing.once('error', (error: NodeJS.ErrnoException) => {
      if (outgoing.reusedSocket && (error.code === 'ECONNRESET' || error.code === 'EPIPE')) resolve('stale');
      else reject(error);
    });
    outgoing.end(body);
    return promise;
  }

  #explain(error: unknown, call: Call, limit: AbortSignal): unknown {
    if (call.signal?.aborted) return call.signal.reason;
    if (limit.aborted) {
      const seconds = Math.round((call.timeoutMs ?? this.#timeoutMs) / 1000);
      return new ApiError(
        'unavailable',
        `${call.what} failed: ${this.origin.host} did not answer within ${seconds} s.`,
      );
    }
    if (error instanceof SyntaxError)
      return new ApiError('internal', `${call.what} failed: the answer is not JSON.`, { cause: error });
    return connectionError(error, call.what, this.origin.host);
  }
}

function parseOrigin(text: string): URL {
  const url = URL.parse(text);
  // Never quote what is wrong: people put credentials into URLs.
  if (
    url?.protocol !== 'https:' ||
    url.username ||
    url.password ||
    url.pathname !== '/' ||
    url.search ||
    url.hash
  ) {
    throw new CloisterError(
      'request.invalid',
      'The URL of the cluster must be https://HOST:PORT, with nothing behind it.',
    );
  }
  return url;
}

async function refuseFailures(response: IncomingMessage, what: string): Promise<IncomingMessage> {
  const status = response.statusCode ?? 0;
  if (status >= 200 && status < 300) return response;
  const body = await readText(response, MAX_PROBLEM_BYTES, what);
  if (status >= 300 && status < 400) {
    throw new ApiError(
      'internal',
      `${what} failed: the server answered with a redirect (${status}), which is never followed.`,
      {
        status,
        hint: 'Give the URL of the control plane itself.',
      },
    );
  }
  throw problemToError(status, body, what);
}

async function readText(response: IncomingMessage, maxBytes: number, what: string): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes)
      throw new ApiError('internal', `${what} failed: the answer is longer than ${maxBytes} bytes.`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
