// How a machine becomes a node: a join token and a request for a certificate, for a certificate. Over HTTPS, and only
// with a server that the given authority has signed.
import { request } from 'node:https';
import { CloisterError, isErrorCode } from '@cloister/model/errors.ts';
import { type JoinReply, JoinReplySchema } from '@cloister/model/tenant.ts';
import { parseJson } from './json.ts';
import { createNodeRequest } from './pki.ts';

const JOIN_TIMEOUT_MS = 30_000;
const MAX_REPLY_BYTES = 65_536;

export interface JoinOptions {
  /** https://host:port of the API. */
  readonly apiUrl: string;
  /** The cluster's CA, brought to the machine beforehand. No other is trusted. */
  readonly caPem: string;
  readonly token: string;
  readonly nodeName: string;
  readonly instanceId: string;
  readonly labels?: Readonly<Record<string, string>>;
}

export interface Joined extends JoinReply {
  /** Made here; it never left. Keep it in a file of mode 0600. */
  readonly keyPem: string;
}

/** Throws CloisterError with the server's code (join.*), or `unavailable` when it could not be reached. */
export async function joinCluster(options: JoinOptions): Promise<Joined> {
  const { csrPem, keyPem } = await createNodeRequest();
  const body = JSON.stringify({
    token: options.token,
    nodeName: options.nodeName,
    instanceId: options.instanceId,
    csrPem,
    labels: options.labels ?? {},
  });
  const reply = await post(new URL('/v1/join', options.apiUrl), options.caPem, body);
  if (reply.status !== 201) throw problemOf(reply, options.apiUrl);
  return { ...parseJson(JoinReplySchema, reply.body, `the answer of ${options.apiUrl}`), keyPem };
}

interface Reply {
  readonly status: number;
  readonly body: string;
}

async function post(url: URL, caPem: string, body: string): Promise<Reply> {
  const unreachable = (cause: unknown) =>
    new CloisterError('unavailable', `Could not reach ${url.origin} to join: ${(cause as Error).message}.`, {
      cause,
    });
  return await new Promise<Reply>((resolve, reject) => {
    const outgoing = request(
      url,
      {
        method: 'POST',
        ca: caPem,
        agent: false,
        signal: AbortSignal.timeout(JOIN_TIMEOUT_MS),
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
      },
      (incoming) => {
        const chunks: Buffer[] = [];
        let bytes = 0;
        incoming.on('data', (chunk: Buffer) => {
          bytes += chunk.length;
          if (bytes > MAX_REPLY_BYTES) incoming.destroy(new Error('the answer is too large'));
          else chunks.push(chunk);
        });
        incoming.on('error', (error) => reject(unreachable(error)));
        incoming.on('end', () =>
          resolve({ status: incoming.statusCode ?? 0, body: Buffer.concat(chunks).toString() }),
        );
      },
    );
    outgoing.on('error', (error) => reject(unreachable(error)));
    outgoing.end(body);
  });
}

function problemOf(reply: Reply, apiUrl: string): CloisterError {
  try {
    const { code, detail } = JSON.parse(reply.body) as { code?: unknown; detail?: unknown };
    if (typeof code === 'string' && isErrorCode(code))
      return new CloisterError(code, String(detail).slice(0, 2000));
  } catch {
    // not a problem document: fall through
  }
  return new CloisterError('unavailable', `Could not join: ${apiUrl} answered ${reply.status}.`);
}
