// A client of the registry protocol (Docker Registry v2, OCI Distribution), for pulling. The registry may be hostile:
// what it says is bounded in size and in time, and believed only where a digest vouches for it (by our callers).
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { backoffMs } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import {
  basicAuthorization,
  type Credentials,
  parseChallenge,
  parseToken,
  tokenUrl,
} from './authorization.ts';
import { isInsecure } from './destination.ts';
import type { Reference } from './reference.ts';
import { type Answer, type Request, TransientError, Transport, type TransportOptions } from './transport.ts';

export interface RegistryOptions extends TransportOptions {
  /** By the registry's host, as references have it. Asked at each pull, so that they can be changed. */
  readonly credentials?: (registry: string) => RegistryCredentials | undefined;
}

export interface RegistryCredentials extends Credentials {
  /** Whom they are for: groups of PullOptions. Default: everybody. */
  readonly tenants?: readonly string[];
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

const MAX_ATTEMPTS = 3;
const MAX_REDIRECTS = 5;
const MAX_TOKEN_BYTES = 131_072;
const FIRST_BACKOFF_MS = 200;
const MAX_BACKOFF_MS = 2000;

/** What a registry may be shown for a group. */
export function credentialsFor(
  registry: string,
  group: string,
  options: RegistryOptions,
): Credentials | undefined {
  const credentials = options.credentials?.(registry);
  return credentials?.tenants?.includes(group) === false ? undefined : credentials;
}

/** One repository of one registry, for one group. Keeps the token that it was given; make one for each pull. */
export class Repository {
  readonly #host: string;
  readonly #base: URL;
  readonly #name: string;
  readonly #transport: Transport;
  readonly #credentials: Credentials | undefined;
  readonly #clock: Clock;
  #authorization: string | undefined;
  #shownAs: string | undefined;

  constructor(reference: Reference, options: RegistryOptions, group: string) {
    this.#transport = new Transport(options);
    this.#clock = options.clock ?? systemClock;
    this.#name = reference.repository;
    this.#host = reference.registry === 'docker.io' ? 'registry-1.docker.io' : reference.registry;
    const url = URL.parse(`https://${this.#host}/v2/${reference.repository}/`);
    if (!url) throw new CloisterError('image.reference-invalid', `"${this.#host}" is not a registry's host.`);
    const plain = URL.parse(`http://${this.#host}${url.pathname}`);
    this.#base = plain && isInsecure(plain, options) ? plain : url;
    this.#credentials = credentialsFor(reference.registry, group, options);
  }

  get name(): string {
    return `${this.#host}/${this.#name}`;
  }

  /** The user whose password it or its token server has seen. Undefined: it gives to everybody, so far. */
  get shownAs(): string | undefined {
    return this.#shownAs;
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
        (await this.#request(path, { method: 'HEAD', signal })).cancel();
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
    response.cancel();
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
    for (let redirects = 0; redirects <= MAX_REDIRECTS; ) {
      const isOwn = url.origin === this.#base.origin; // elsewhere our authorization is nobody's business
      const headers = {
        ...request.headers,
        ...(isOwn && this.#authorization ? { authorization: this.#authorization } : {}),
      };
      const answer = await this.#transport.send(url, { ...request, headers });
      if (answer.status === 200 || answer.status === 206) return answer;
      answer.cancel();
      const location = answer.headers.get('location');
      if ([301, 302, 303, 307, 308].includes(answer.status) && location !== null) {
        redirects += 1;
        url = this.#redirected(location, url);
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
    if (challenge) this.#shownAs = credentials?.username;
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
    const headers: Record<string, string> = credentials
      ? { authorization: basicAuthorization(credentials) }
      : {};
    const answer = await this.#transport.send(url, { headers, signal });
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
}
