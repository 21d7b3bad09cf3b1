// The agent's end of the link: one connection, one session on it, and bulk streams beside it.
import { isIP } from 'node:net';
import { checkServerIdentity, createSecureContext } from 'node:tls';
import type { Clock } from '@cloister/kit/clock.ts';
import { backoffMs, withTimeout } from '@cloister/kit/wait.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { ChannelCredentials, Client } from '@grpc/grpc-js';
import { type LinkCall, LinkStream, toCloisterError } from './linkStream.ts';
import type { AgentMessage, ServerMessage, StreamFrame } from './messages.ts';
import { CHANNEL_OPTIONS, linkMethods } from './protocol.ts';

export interface ClientLinkOptions {
  /** host:port of the control plane's link; its certificate must name this host. */
  readonly address: string;
  readonly caPem: string;
  readonly certificatePem: string;
  readonly keyPem: string;
  /** From the dial to the server's first word. Default 10,000. */
  readonly connectTimeoutMs?: number;
  /** Gives up the dial; a session that is there already stays. */
  readonly signal?: AbortSignal;
}

export class LinkSession implements AsyncIterable<ServerMessage> {
  readonly #client: Client;
  readonly #session: LinkStream<ServerMessage, AgentMessage>;

  constructor(client: Client, session: LinkStream<ServerMessage, AgentMessage>) {
    this.#client = client;
    this.#session = session;
    void session.closed.then(() => client.close());
  }

  /** Resolves when the session is over: with the reason when it broke or was refused. */
  get closed(): Promise<CloisterError | undefined> {
    return this.#session.closed;
  }

  /** In the order of the calls; waits for room. Throws `unavailable` when the session is over. */
  async send(message: AgentMessage): Promise<void> {
    await this.#session.write(message);
  }

  [Symbol.asyncIterator](): AsyncIterator<ServerMessage> {
    return this.#session[Symbol.asyncIterator]();
  }

  /** Answers the server's OpenStream. The stream breaks when the session does. */
  async openStream(streamId: string): Promise<LinkStream<StreamFrame, StreamFrame>> {
    const { path, requestSerialize, responseDeserialize } = linkMethods().stream;
    const call = this.#client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize);
    const stream = new LinkStream<StreamFrame, StreamFrame>(call as unknown as LinkCall);
    const endWithSession = this.#session.closed.then(() => {
      stream.cancel(new CloisterError('unavailable', 'The session is over.'));
    });
    void endWithSession;
    await stream.write({ frame: 'open', open: streamId });
    return stream;
  }

  close(): void {
    this.#session.cancel();
    this.#client.close();
  }
}

/** Dials and waits until the server has let us in. Throws `unavailable` or `auth.invalid`, with what TLS said. */
export async function connectLink(options: ClientLinkOptions): Promise<LinkSession> {
  const { signal } = options;
  signal?.throwIfAborted();
  const context = createSecureContext({
    ca: options.caPem,
    cert: options.certificatePem,
    key: options.keyPem,
    minVersion: 'TLSv1.3',
  });
  // TLS allows no IP address as the name that is asked for, so one is asked for by a fixed name, and what the
  // certificate says is compared with the address all the same.
  const host = new URL(`https://${options.address}`).hostname.replace(/^\[|\]$/g, '');
  const credentials = ChannelCredentials.createFromSecureContext(context, {
    checkServerIdentity: (_name, certificate) => checkServerIdentity(host, certificate),
  });
  const client = new Client(options.address, credentials, {
    ...CHANNEL_OPTIONS,
    ...(isIP(host) ? { 'grpc.ssl_target_name_override': 'cloister-server' } : {}),
    'grpc.use_local_subchannel_pool': 1, // each session dials anew
    'grpc.enable_http_proxy': 0,
    'grpc.enable_retries': 0,
    'grpc.service_config_disable_resolution': 1,
  });
  const { path, requestSerialize, responseDeserialize } = linkMethods().session;
  const call = client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize);
  const session = new LinkStream<ServerMessage, AgentMessage>(call as unknown as LinkCall);
  const late = () =>
    new CloisterError('unavailable', `Could not connect to ${options.address}: no answer in time.`);
  const giveUp = (): void =>
    session.cancel(new CloisterError('unavailable', `The dial of ${options.address} was given up.`));
  signal?.addEventListener('abort', giveUp);
  try {
    const welcome = new Promise<void>((resolve) => call.once('metadata', () => resolve()));
    const refusal = session.closed.then((error) => {
      throw error ?? new CloisterError('unavailable', `Could not connect to ${options.address}: it hung up.`);
    });
    await withTimeout(Promise.race([welcome, refusal]), options.connectTimeoutMs ?? 10_000, late);
    refusal.catch(() => {}); // from here on `closed` tells
    return new LinkSession(client, session);
  } catch (error) {
    session.cancel();
    client.close();
    throw toCloisterError(error);
  } finally {
    signal?.removeEventListener('abort', giveUp);
  }
}

export interface RunSessionsOptions {
  /** Gives up when the signal is aborted. */
  readonly connect: (signal: AbortSignal) => Promise<LinkSession>;
  /** One session's work; its end, or its error, ends the session. */
  readonly onSession: (session: LinkSession) => Promise<void>;
  /** Why there is no session at the moment, and when the next is tried. */
  readonly onLost: (error: unknown, retryInMs: number) => void;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 10_000;
/** A session that lived this long was a good one: the next is tried soon. */
const GOOD_SESSION_MS = 30_000;

/** Session after session until aborted, with jittered backoff from 0.5 to 10 s in between. */
export async function runSessions(options: RunSessionsOptions): Promise<void> {
  const { clock, signal } = options;
  for (let attempt = 0; !signal.aborted; attempt++) {
    const startedAtMs = clock.monotonic();
    let session: LinkSession | undefined;
    let lost: unknown = new CloisterError('unavailable', 'The session ended.');
    const closeNow = (): void => session?.close();
    signal.addEventListener('abort', closeNow);
    try {
      session = await options.connect(signal);
      if (signal.aborted) session.close();
      await options.onSession(session);
    } catch (error) {
      lost = error;
    } finally {
      signal.removeEventListener('abort', closeNow);
      session?.close();
    }
    if (signal.aborted) return;
    if (session && clock.monotonic() - startedAtMs >= GOOD_SESSION_MS) attempt = 0;
    const retryInMs = backoffMs(attempt, FIRST_RETRY_MS, MAX_RETRY_MS);
    options.onLost(lost, retryInMs);
    await clock.sleep(retryInMs, signal).catch(() => {});
  }
}
