// Opening a WebSocket to the API. Loaded when first needed: most commands never attach to anything.
import type { IncomingMessage } from 'node:http';
import { WebSocket } from 'ws';
import { connectionError, problemToError } from './apiError.ts';
import type { Transport } from './transport.ts';

const OPEN_TIMEOUT_MS = 30_000;
const MAX_MESSAGE_BYTES = 65_537;
const MAX_PROBLEM_BYTES = 65_536;

/** Resolves with an open, paused socket. Throws an ApiError with the server's own words when it refuses. */
export async function openSocket(
  transport: Transport,
  path: string,
  what: string,
  signal?: AbortSignal,
): Promise<WebSocket> {
  signal?.throwIfAborted();
  const url = new URL(path, transport.origin);
  url.protocol = 'wss:';
  const socket = new WebSocket(url, {
    ca: transport.caPem,
    minVersion: 'TLSv1.3',
    headers: { authorization: transport.authorization },
    handshakeTimeout: OPEN_TIMEOUT_MS,
    maxPayload: MAX_MESSAGE_BYTES,
    perMessageDeflate: false,
    followRedirects: false,
  });
  const { promise, resolve, reject } = Promise.withResolvers<WebSocket>();
  const abort = () => {
    reject(signal?.reason);
    socket.terminate();
  };
  signal?.addEventListener('abort', abort, { once: true });
  socket.once('open', () => {
    socket.pause(); // whoever takes it over must not miss the first message
    resolve(socket);
  });
  socket.once('unexpected-response', (_request, response) => {
    const refuse = (body: string) => {
      reject(problemToError(response.statusCode ?? 0, body, what));
      socket.terminate();
    };
    readProblem(response).then(refuse, () => refuse(''));
  });
  socket.on('error', (error) => reject(connectionError(error, what, transport.origin.host)));
  try {
    return await promise;
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

async function readProblem(response: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of response as AsyncIterable<Buffer>) {
    text += chunk.toString('utf8');
    if (text.length > MAX_PROBLEM_BYTES) break;
  }
  return text;
}
