// One HTTP request to where a pull may go, with limits on every wait. A connection goes to the addresses that were
// checked, so who owns a name's DNS gains nothing by answering differently the second time.
import { Agent as HttpAgent, type IncomingMessage, request as requestHttp } from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';
import type { LookupFunction } from 'node:net';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { type Address, addressesOf, type Destinations, isInsecure } from './destination.ts';

export interface TransportOptions extends Destinations {
  /** For the head of an answer. Default 15,000. */
  readonly answerTimeoutMs?: number;
  /** Between two pieces of a body. Default 30,000. */
  readonly idleTimeoutMs?: number;
}

export interface Request {
  readonly method?: 'GET' | 'HEAD';
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal | undefined;
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  /** Leaving the loop cancels the rest. */
  readonly body: AsyncIterable<Buffer>;
  readonly cancel: () => void;
}

/** A broken connection, or a registry that is busy: worth another attempt. */
export class TransientError extends CloisterError {}

const IDLE_CONNECTION_MS = 5000;
const HEADERS = { 'user-agent': 'cloister', 'accept-encoding': 'identity' };

/** Keeps its connections for a while; make one for each pull. */
export class Transport {
  readonly #options: TransportOptions;
  readonly #http = new HttpAgent({ keepAlive: true, timeout: IDLE_CONNECTION_MS });
  readonly #https = new HttpsAgent({ keepAlive: true, timeout: IDLE_CONNECTION_MS });

  constructor(options: TransportOptions) {
    this.#options = options;
  }

  /** Follows no redirects. Throws TransientError, or 'image.pull-failed' for what is not HTTPS. */
  async send(url: URL, { method = 'GET', headers = {}, signal }: Request): Promise<Answer> {
    const { answerTimeoutMs = 15_000, idleTimeoutMs = 30_000 } = this.#options;
    if (url.protocol !== 'https:' && !(url.protocol === 'http:' && isInsecure(url, this.#options))) {
      throw new CloisterError(
        'image.pull-failed',
        `${url.origin.slice(0, 200)} is refused: it is not HTTPS.`,
      );
    }
    const late = new AbortController();
    const stop = signal ? AbortSignal.any([signal, late.signal]) : late.signal;
    const within = async <Value>(ms: number, what: string, wait: Promise<Value>): Promise<Value> => {
      const timer = setTimeout(() => late.abort(new Error(`${what} within ${ms} ms`)), ms);
      try {
        return await wait;
      } catch (error) {
        if (signal?.aborted) throw signal.reason;
        if (error instanceof CloisterError) throw error;
        const why = describeError(late.signal.aborted ? late.signal.reason : error);
        const message = `${url.origin} could not be reached, or broke off: ${why}.`;
        throw new TransientError('image.registry-unreachable', message, { cause: error });
      } finally {
        clearTimeout(timer);
      }
    };
    const answered = this.#answer(url, { method, headers: { ...HEADERS, ...headers }, signal: stop });
    const response = await within(answerTimeoutMs, 'no answer', answered);
    const next = async (chunks: AsyncIterator<Buffer>): Promise<IteratorResult<Buffer>> =>
      await within(idleTimeoutMs, 'no more bytes', chunks.next());
    return {
      status: response.statusCode ?? 0,
      headers: headersOf(response),
      body: bodyOf(response, next),
      cancel: () => response.destroy(),
    };
  }

  async #answer(
    url: URL,
    { signal, ...request }: { method: string; headers: Record<string, string>; signal: AbortSignal },
  ): Promise<IncomingMessage> {
    const addresses = await orAborted(addressesOf(url, this.#options), signal);
    if (!addresses) {
      throw new TransientError(
        'image.registry-unreachable',
        `No public address is known for ${url.host}. A registry that is not public has to be listed by the node's operator.`,
      );
    }
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const options = { ...request, signal, lookup: answerWith(addresses) };
    const sent =
      url.protocol === 'https:'
        ? requestHttps(url, { ...options, agent: this.#https })
        : requestHttp(url, { ...options, agent: this.#http });
    sent.on('response', (response: IncomingMessage) => {
      response.on('error', () => {}); // who reads it is told
      resolve(response);
    });
    sent.on('error', reject);
    sent.on('close', () => reject(new Error('the connection was closed')));
    sent.end();
    return await promise;
  }
}

function answerWith(addresses: readonly Address[]): LookupFunction {
  return (_hostname, options, callback) => {
    const [first] = addresses;
    if (options.all) callback(null, [...addresses]);
    else callback(null, first?.address ?? '', first?.family);
  };
}

async function* bodyOf(
  response: IncomingMessage,
  next: (chunks: AsyncIterator<Buffer>) => Promise<IteratorResult<Buffer>>,
): AsyncGenerator<Buffer> {
  try {
    const chunks: AsyncIterator<Buffer> = response[Symbol.asyncIterator]();
    for (;;) {
      const { done, value } = await next(chunks);
      if (done) return;
      yield value;
    }
  } finally {
    response.destroy();
  }
}

function headersOf(response: IncomingMessage): Headers {
  const headers = new Headers();
  for (const [name, values = []] of Object.entries(response.headersDistinct)) {
    for (const value of values) headers.append(name, value);
  }
  return headers;
}

/** Looking up a name cannot be cancelled, only left alone. */
async function orAborted<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = (): void => reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
