// One HTTP request to where a pull may go, with limits on every wait. A connection goes to the addresses that were
// checked, so who owns a name's DNS gains nothing by answering differently the second time.
import { Agent as HttpAgent, type IncomingMessage, request as requestHttp } from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';
import type { LookupFunction } from 'node:net';
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { type Address, addressesOf, type Destinations, isInsecure } from './destination.ts';

export interface TransportOptions extends Destinations {
  /** For the head of an answer. Default 15,000. */
  readonly answerTimeoutMs?: number;
  /** Between two pieces of a body. Default 30,000. */
  readonly idleTimeoutMs?: number;
  /** On average over `rateWindowMs` of waiting for the registry, or the pull ends. Default 16,384. */
  readonly minBytesPerSecond?: number;
  /** Default 60,000. */
  readonly rateWindowMs?: number;
  readonly clock?: Clock;
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

/** What an answer's head counts for: a registry that answers late and briefly, as for what is there, is not slow. */
const HEAD_WORTH_BYTES = 65_536;
const IDLE_CONNECTION_MS = 5000;
const HEADERS = { 'user-agent': 'cloister', 'accept-encoding': 'identity' };

/** Keeps its connections for a while, and an eye on its speed; make one for each pull. */
export class Transport {
  readonly #options: TransportOptions;
  readonly #http = new HttpAgent({ keepAlive: true, timeout: IDLE_CONNECTION_MS });
  readonly #https = new HttpsAgent({ keepAlive: true, timeout: IDLE_CONNECTION_MS });

  readonly #clock: Clock;
  /** Since the speed was last looked at. All requests together. */
  #waitedMs = 0;
  #gotBytes = 0;

  constructor(options: TransportOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
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
    this.#checkSpeed(url);
    const late = new AbortController();
    const stop = signal ? AbortSignal.any([signal, late.signal]) : late.signal;
    const within = async <Value>(ms: number, what: string, wait: Promise<Value>): Promise<Value> => {
      const timer = setTimeout(() => late.abort(new Error(`${what} within ${ms} ms`)), ms);
      const beganMs = this.#clock.monotonic();
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
        this.#waitedMs += this.#clock.monotonic() - beganMs;
      }
    };
    const answered = this.#answer(url, { method, headers: { ...HEADERS, ...headers }, signal: stop });
    const response = await within(answerTimeoutMs, 'no answer', answered);
    this.#gotBytes += HEAD_WORTH_BYTES;
    const next = async (chunks: AsyncIterator<Buffer>): Promise<IteratorResult<Buffer>> => {
      const result = await within(idleTimeoutMs, 'no more bytes', chunks.next());
      if (!result.done) this.#gotBytes += result.value.length;
      this.#checkSpeed(url);
      return result;
    };
    return {
      status: response.statusCode ?? 0,
      headers: headersOf(response),
      body: bodyOf(response, next),
      cancel: () => response.destroy(),
    };
  }

  /** The limits on single waits do not end a registry that gives a byte just before each. */
  #checkSpeed(url: URL): void {
    const { minBytesPerSecond = 16_384, rateWindowMs = 60_000 } = this.#options;
    if (this.#waitedMs < rateWindowMs) return;
    const bytesPerSecond = Math.floor((this.#gotBytes * 1000) / this.#waitedMs);
    this.#waitedMs = 0;
    this.#gotBytes = 0;
    if (bytesPerSecond >= minBytesPerSecond) return;
    throw new CloisterError(
      'image.pull-failed',
      `${url.host} is too slow: it gives less than ${minBytesPerSecond} bytes a second.`,
    );
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
