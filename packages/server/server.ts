// The control plane as one thing that starts and stops: store, state, fleet, reconciler, API and link.
import { join } from 'node:path';
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { createLogger, type Logger } from '@cloister/kit/log.ts';
import { issueServerCertificate } from '@cloister/link/pki.ts';
import { startServerLink } from '@cloister/link/serverLink.ts';
import { openEmbeddedStore } from '@cloister/store/embedded.ts';
import { ensureOperator, openAuthority } from './bootstrap.ts';
import { Committer } from './commit.ts';
import { Refusals } from './events.ts';
import { Fleet } from './fleet.ts';
import { Follower } from './follow.ts';
import { startHttpApi } from './http.ts';
import { Reconciler } from './reconcile.ts';
import { Sessions } from './sessions.ts';
import { type Cluster, readSettings } from './settings.ts';
import { StreamCounts } from './streamCounts.ts';

export interface Server {
  /** host:port of the API, over HTTPS. */
  readonly apiAddress: string;
  /** host:port of the agents' link. */
  readonly linkAddress: string;
  /** Refuses new work, ends streams and sessions, and waits until what was accepted is stored. */
  close(): Promise<void>;
}

/**
 * Starts a control plane from settings (settings.ts says which, and their defaults). The authority's certificate is
 * in DATADIR/ca.pem, and after a first start an operator's token in DATADIR/operator.token. Whatever was started
 * is stopped again when a later part does not start.
 */
export async function startServer(
  given: unknown,
  options: { readonly clock?: Clock; readonly logger?: Logger } = {},
): Promise<Server> {
  const settings = readSettings(given);
  const logger = options.logger ?? createLogger('server');
  const clock = options.clock ?? systemClock;
  await using started = new AsyncDisposableStack();

  const authority = await openAuthority(settings.dataDir);
  const certificate = await issueServerCertificate(authority, settings.names);
  const store = await openEmbeddedStore({ folder: join(settings.dataDir, 'store'), clock });
  started.defer(() => store.close());
  const follower = new Follower(store, logger, clock);
  await follower.start();
  started.defer(() => follower.close());
  const cluster: Cluster = {
    settings,
    follower,
    committer: new Committer(store, follower, clock),
    clock,
    logger,
  };
  await ensureOperator(cluster);

  const refusals = new Refusals(cluster);
  const streams = new StreamCounts(settings.maxStreamsPerTenant);
  const fleet = new Fleet(cluster);
  started.defer(() => fleet.close());
  const reconciler = new Reconciler(cluster, fleet, (jobId) => streams.attachedTo(jobId));
  streams.onLeave((jobId) => reconciler.touch(jobId));
  await reconciler.start();
  started.defer(() => reconciler.close());
  const sessions = new Sessions(cluster, fleet, refusals);
  started.defer(() => sessions.close());
  const link = await startServerLink({
    ...settings.link,
    ...certificate,
    caPem: authority.certificatePem,
    logger,
    onSession: (stream, peer) => sessions.onSession(stream, peer),
    onStream: (frames, streamId, peer) => sessions.onStream(frames, streamId, peer),
  });
  started.defer(() => link.close());
  const linkPort = link.address.slice(link.address.lastIndexOf(':') + 1);
  const linkAddress = settings.linkAdvertise ?? `${settings.names[0] ?? 'localhost'}:${linkPort}`;
  const { placer } = reconciler;
  const parts = { cluster, fleet, sessions, placer, refusals, streams, authority, linkAddress };
  const api = await startHttpApi(parts, { ...settings.api, ...certificate });
  started.defer(() => api.close());
  logger.info({ api: api.address, link: link.address }, 'the control plane is up');

  const parting = started.move(); // from here on it is closed by close(), last part first
  return {
    apiAddress: api.address,
    linkAddress: link.address,
    close: async () => {
      fleet.close(); // that sessions end now says nothing about the nodes
      await parting.disposeAsync();
    },
  };
}
