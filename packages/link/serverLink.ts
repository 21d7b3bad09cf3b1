// The control plane's end of the link: a gRPC server that speaks TLS 1.3 only, and only with who holds a certificate
// of a node. It knows nothing of what the messages mean.

import type { Logger } from '@cloister/kit/log.ts';
import { withTimeout } from '@cloister/kit/wait.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import type { NodeId } from '@cloister/model/ids.ts';
import { Metadata, Server, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import { type LinkCall, LinkStream, toCloisterError } from './linkStream.ts';
import type { AgentMessage, ServerMessage, StreamFrame } from './messages.ts';
import { nodeIdOf } from './pki.ts';
import { CHANNEL_OPTIONS, linkMethods } from './protocol.ts';

/** Of one connection: its session, and its bulk streams. */
const MAX_STREAMS_PER_CONNECTION = 1000;
const FIRST_FRAME_TIMEOUT_MS = 10_000;
const CLOSE_TIMEOUT_MS = 2_000;

export interface AgentPeer {
  /** From the verified certificate. */
  readonly nodeId: NodeId;
  /** IP:port, for logs. */
  readonly address: string;
}

export interface ServerLinkOptions {
  readonly host: string;
  /** 0 for any. */
  readonly port: number;
  /** Of the authority that signed the nodes. */
  readonly caPem: string;
  readonly certificatePem: string;
  readonly keyPem: string;
  readonly logger: Logger;
  /** The session lasts until this returns; an error is told to the agent. */
  readonly onSession: (session: LinkStream<AgentMessage, ServerMessage>, peer: AgentPeer) => Promise<void>;
  /** A bulk stream that the agent opened under this id; lasts until this returns. */
  readonly onStream: (
    stream: LinkStream<StreamFrame, StreamFrame>,
    streamId: string,
    peer: AgentPeer,
  ) => Promise<void>;
}

export interface ServerLink {
  /** host:port, with the port that it got. */
  readonly address: string;
  /** Ends every session, at once after 2 s. */
  close(): Promise<void>;
}

export async function startServerLink(options: ServerLinkOptions): Promise<ServerLink> {
  const server = new Server({
    ...CHANNEL_OPTIONS,
    'grpc.max_concurrent_streams': MAX_STREAMS_PER_CONNECTION,
  });
  const live = new Set<LinkStream<never, never>>();

  const handle =
    <In, Out>(run: (stream: LinkStream<In, Out>, peer: AgentPeer) => Promise<void>) =>
    (call: ServerDuplexStream<In, Out>): void => {
      const stream = new LinkStream<In, Out>(call as unknown as LinkCall);
      const certificate = call.getAuthContext().sslPeerCertificate;
      const nodeId = certificate && nodeIdOf(certificate.raw);
      if (!nodeId) {
        stream.cancel(new CloisterError('auth.invalid', 'The certificate is not that of a node.'));
        return;
      }
      call.sendMetadata(new Metadata()); // tells the agent that it is in, before anything is said
      const peer = { nodeId, address: call.getPeer() };
      live.add(stream as never);
      void run(stream, peer)
        .then(
          () => stream.end(),
          (error: unknown) => {
            options.logger.debug({ ...peer, error: describeError(error) }, 'a stream of an agent broke');
            stream.cancel(toCloisterError(error));
          },
        )
        .finally(() => live.delete(stream as never));
    };

  const { session, stream } = linkMethods();
  server.addService(
    { session, stream },
    {
      session: handle<AgentMessage, ServerMessage>(options.onSession),
      stream: handle<StreamFrame, StreamFrame>(async (frames, peer) => {
        await options.onStream(frames, await readStreamId(frames), peer);
      }),
    },
  );
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(bracketed(options.host, options.port), new MutualTls(options), (error, bound) =>
      error ? reject(error) : resolve(bound),
    );
  });
  return {
    address: bracketed(options.host, port),
    close: async () => {
      for (const open of live) open.cancel(new CloisterError('unavailable', 'The control plane is closing.'));
      const gone = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
      await withTimeout(gone, CLOSE_TIMEOUT_MS, () => new Error('late')).catch(() => server.forceShutdown());
    },
  };
}

/** grpc-js's createSsl() has no way to say which versions of TLS are spoken. */
class MutualTls extends ServerCredentials {
  constructor(options: { readonly caPem: string; readonly certificatePem: string; readonly keyPem: string }) {
    super(
      { requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' },
      { ca: options.caPem, cert: options.certificatePem, key: options.keyPem, minVersion: 'TLSv1.3' },
    );
  }

  override _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}

async function readStreamId(frames: LinkStream<StreamFrame, StreamFrame>): Promise<string> {
  const late = () => new CloisterError('request.invalid', 'The stream was not opened within 10 s.');
  const first = await withTimeout(frames[Symbol.asyncIterator]().next(), FIRST_FRAME_TIMEOUT_MS, late);
  if (first.done || first.value.frame !== 'open') {
    throw new CloisterError('request.invalid', 'The first frame of a stream must be "open".');
  }
  return first.value.open;
}

function bracketed(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}
