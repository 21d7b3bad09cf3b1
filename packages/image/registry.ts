// A client of the registry protocol (Docker Registry v2, OCI Distribution), for pulling. The registry may be hostile:
// what it says is bounded in size and in time, and believed only where a digest vouches for it (by our callers).
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { backoffMs } from '@cloister/kit/wait.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import {
  basicAuthorization,
  type Credentials,
  parseChallenge,
  parseToken,
  tokenUrl,
} from './authorization.ts';
import { checkDestination, isLoopback } from './destination.ts';
import type { Reference } from './reference.ts';

export interface RegistryOptions {
  /** By the registry's host, as references have it. Asked at each pull, so that they can be changed. */
  readonly credentials?: (registry: string) => Credentials | undefined;
  /** Hosts that are spoken to without TLS. Loopback always is, as with Docker. */
  readonly insecureRegistries?: readonly string[];
  /** For the head of an answer. Default 15,000. */
  readonly answerTimeoutMs?: number;
  /** Between two pieces of a body. Default 30,000. */
  readonly idleTimeoutMs?: number;
  readonly clock?: Clock;
}

export interface Document {
  readonly bytes: Buffer;
  readonly contentType: string;
}

export interface BlobStream {
  /** Of the first byte: less than was asked for when the registry knows no ranges. */
  readonly offset: number;
  readonly body: AsyncIterable<Buffer>;
}

/** A broken connection, or a registry that is busy: worth another attempt. */
export class TransientError extends CloisterError {}

const MAX_ATTEMPTS = 3;
const MAX_REDIRECTS = 5;
const MAX_TOKEN_BYTES = 131_072;
const FIRST_BACKOFF_MS = 200;
const MAX_BACKOFF_MS = 2000;

interface Request {
  readonly method?: 'GET' | 'HEAD';
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal | undefined;
}

/** One repository of one registry. Keeps the token that it was given; make one for each pull. */
export class Repository {
  readonly #host: string;
  readonly #base: URL;
  readonly #name: string;
  readonly #plain: boolean;
  readonly #options: RegistryOptions;
  readonly #clock: Clock;
  #authorization: string | undefined;

  constructor(reference: Reference, options: RegistryOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#name = reference.repository;
    this.#host = reference.registry === 'docker.io' ? 'registry-1.docker.io' : reference.registry;
    this.#plain =
      isLoopback(reference.registry) || (options.insecureRegistries ?? []).includes(reference.registry);
    this.#base = new URL(`${this.#plain ? 'http' : 'https'}://${this.#host}/v2/${reference.repository}/`);
    this.#credentials = options.credentials?.(reference.registry);
  }
  readonly #credentials: Credentials | undefined;

  get name(): string {
    return `${this.#host}/${this.#name}`;
  }

  /** A manifest, an index or a configuration. Throws when it is longer than `maxBytes`. */
  async fetchDocument(
    path: string,
    accept: string,
    maxBytes: number,
    signal?: AbortSignal,
  ): Promise<Document> {
    return await this.#attempt(signal, async () => {
      const response = await this.#request(path, { headers: { accept }, signal });
      const chunks: Buffer[] = [];
      let length = 0;
      for await (const chunk of response.body) {
        length += chunk.length;
        if (length > maxBytes)
          throw new CloisterError('image.too-large', `${this.#what(path)} is longer than ${maxBytes} bytes.`);
        chunks.push(chunk);
      }
      return { bytes: Buffer.concat(chunks), contentType: response.headers.get('content-type') ?? '' };
    });
  }

  /** Whether the registry would give us this blob. */
  async hasBlob(digest: string, signal?: AbortSignal): Promise<boolean> {
    const path = `blobs/${digest}`;
    try {
      await this.#attempt(signal, async () => {
        await (await this.#request(path, { method: 'HEAD', signal })).cancel();
      });
      return true;
    } catch (error) {
      if (error instanceof CloisterError && error.code === 'image.not-found') return false;
      throw error;
    }
  }

  /** A blob's bytes from `offset` on. One attempt: the caller knows how far it came. Throws TransientError when another is worthwhile. */
  async openBlob(digest: string, offset: number, signal: AbortSignal): Promise<BlobStream> {
    const headers: Record<string, string> = offset > 0 ? { range: `bytes=${offset}-` } : {};
    const response = await this.#request(`blobs/${digest}`, { headers, signal });
    if (response.status !== 206) return { offset: 0, body: response.body };
    const start = Number(/^bytes (\d{1,15})-/.exec(response.headers.get('content-range') ?? '')?.[1] ?? -1);
    if (start === offset) return { offset, body: response.body };
    await response.cancel();
    throw new TransientError(
      'image.pull-failed',
      `${this.#host} answered another range of ${digest} than it was asked for.`,
    );
  }

  async #attempt<Value>(signal: AbortSignal | undefined, once: () => Promise<Value>): Promise<Value> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await once();
      } catch (error) {
        signal?.throwIfAborted();
        if (!(error instanceof TransientError) || attempt >= MAX_ATTEMPTS) throw error;
        await this.#clock.sleep(backoffMs(attempt, FIRST_BACKOFF_MS, MAX_BACKOFF_MS), signal);
      }
    }
  }

  /** Sends, proves who we are when asked to, follows redirects. Only answers with 200 and 206 come out. */
  async #request(path: string, request: Request): Promise<Answer> {
    let url = new URL(path, this.#base);
    let hasAuthorized = false;
    await checkDestination(url, { host: this.#host, plain: this.#plain });
    for (let redirects = 0; redirects <= MAX_REDIRECTS; ) {
      const isOwn = url.origin === this.#base.origin; // elsewhere our authorization is nobody's business
      const headers = {
        ...request.headers,
        ...(isOwn && this.#authorization ? { authorization: this.#authorization } : {}),
      };
      const answer = await this.#send(url, { ...request, headers });
      if (answer.status === 200 || answer.status === 206) return answer;
      await answer.cancel();
      const location = answer.headers.get('location');
      if ([301, 302, 303, 307, 308].includes(answer.status) && location !== null) {
        redirects += 1;
        url = this.#redirected(location, url);
        await checkDestination(url, { host: this.#host, plain: this.#plain });
      } else if (answer.status === 401 && isOwn && !hasAuthorized) {
        hasAuthorized = true;
        this.#authorization = await this.#authorize(answer.headers.get('www-authenticate'), request.signal);
      } else {
        throw this.#refusal(answer.status, path);
      }
    }
    throw new CloisterError('image.pull-failed', `${this.#host} redirects more than ${MAX_REDIRECTS} times.`);
  }

  #redirected(location: string, from: URL): URL {
    const url = URL.parse(location, from);
    if (url?.username !== '' || url.password !== '') {
      throw new CloisterError('image.pull-failed', `${this.#host} redirects to what is not a plain address.`);
    }
    return url;
  }

  async #authorize(header: string | null, signal: AbortSignal | undefined): Promise<string> {
    const challenge = parseChallenge(header);
    const credentials = this.#credentials;
    if (challenge?.scheme === 'basic' && credentials) return basicAuthorization(credentials);
    if (challenge?.scheme !== 'bearer') {
      const why = challenge
        ? 'this node has no credentials for it'
        : 'it names no way to prove who we are that we know';
      throw new CloisterError(
        'image.unauthorized',
        `${this.#host} refuses anonymous pulls of ${this.#name}, and ${why}.`,
      );
    }
    const url = tokenUrl(challenge, this.#name);
    await checkDestination(url, { host: this.#host, plain: this.#plain });
    const headers: Record<string, string> = credentials
      ? { authorization: basicAuthorization(credentials) }
      : {};
    const answer = await this.#send(url, { headers, signal });
    const chunks: Buffer[] = [];
    let length = 0;
    for await (const chunk of answer.body) {
      length += chunk.length;
      if (length > MAX_TOKEN_BYTES) break;
      chunks.push(chunk);
    }
    if (answer.status !== 200)
      throw this.#refusal(answer.status === 404 ? 401 : answer.status, `token from ${url.origin}`);
    return `Bearer ${parseToken(Buffer.concat(chunks), this.#host)}`;
  }

  #refusal(status: number, path: string): CloisterError {
    const what = this.#what(path);
    if (status === 401 || status === 403) {
      const who = this.#credentials ? 'with the credentials of this node' : 'without credentials';
      return new CloisterError('image.unauthorized', `${what} was refused ${who} (status ${status}).`);
    }
    if (status === 404) return new CloisterError('image.not-found', `${what} is not there.`);
    const isTransient = status === 408 || status === 429 || status >= 500;
    const message = `${what} could not be fetched: the registry answered with status ${status}.`;
    return isTransient
      ? new TransientError('image.registry-unreachable', message)
      : new CloisterError('image.pull-failed', message);
  }

  #what(path: string): string {
    return `${this.#host}/${this.#name} ${path}`.slice(0, 400);
  }

  async #send(url: URL, { method = 'GET', headers = {}, signal }: Request): Promise<Answer> {
    const { answerTimeoutMs = 15_000, idleTimeoutMs = 30_000 } = this.#options;
    const late = new AbortController();
    const arm = (ms: number, what: string): NodeJS.Timeout =>
      setTimeout(() => late.abort(new Error(`${what} within ${ms} ms`)), ms);
    const failure = (error: unknown): unknown => {
      if (signal?.aborted) return signal.reason;
      if (error instanceof CloisterError) return error;
      const why = describeError(late.signal.aborted ? late.signal.reason : error);
      return new TransientError(
        'image.registry-unreachable',
        `${url.origin} could not be reached, or broke off: ${why}.`,
        { cause: error },
      );
    };
    const timer = arm(answerTimeoutMs, 'no answer');
    try {
      const response = await fetch(url, {
        method,
        headers: { 'user-agent': 'cloister', 'accept-encoding': 'identity', ...headers },
        redirect: 'manual',
        signal: signal ? AbortSignal.any([signal, late.signal]) : late.signal,
      });
      const body = bodyOf(response, () => arm(idleTimeoutMs, 'no more bytes'), failure);
      return {
        status: response.status,
        headers: response.headers,
        body,
        cancel: async () => await response.body?.cancel(),
      };
    } catch (error) {
      throw failure(error);
    } finally {
      clearTimeout(timer);
    }
  }
}

interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: AsyncIterable<Buffer>;
  readonly cancel: () => Promise<void>;
}

/** The body's pieces, with a limit on the wait for each, and their errors as ours. Leaving the loop cancels the rest. */
async function* bodyOf(
  response: Response,
  arm: () => NodeJS.Timeout,
  failure: (error: unknown) => unknown,
): AsyncGenerator<Buffer> {
  if (!response.body) return;
  const reader = response.body.getReader();
  try {
    for (;;) {
      const timer = arm();
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return;
      yield Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    }
  } catch (error) {
    throw failure(error);
  } finally {
    await reader.cancel().catch(() => {}); // it is broken already, or ended
  }
}
