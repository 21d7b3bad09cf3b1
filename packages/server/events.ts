// The log of what happened: written in the transactions that it tells of, read by tenants (their own) and operators
// (the nodes' too), and kept bounded.
import type { Event } from '@cloister/model/event.ts';
import type { TenantId } from '@cloister/model/ids.ts';
import type { TokenScope } from '@cloister/model/tenant.ts';
import type { EventOwner, EventRecord } from './records.ts';
import type { Cluster } from './settings.ts';

/** New events behind which a reader may fall before its stream is ended; it can go on with "after". */
const MAX_BEHIND = 10_000;
const TRIM_BATCH = 400;
const REFUSALS_PER_MINUTE = 60;

export interface EventReader {
  readonly tenantId: TenantId;
  readonly scope: TokenScope;
}

/** Events after a revision, oldest first; with `follow`, those to come as well, until the signal is aborted. */
export async function* readEvents(
  cluster: Cluster,
  reader: EventReader,
  options: { after: number; follow: boolean; signal: AbortSignal },
): AsyncGenerator<Event> {
  const { follower } = cluster;
  const owners: EventOwner[] = reader.scope === 'operator' ? [reader.tenantId, 'cluster'] : [reader.tenantId];
  // What is there and what comes: both taken before anything is awaited, so nothing falls in between.
  const kept = owners
    .flatMap((owner) => [...(follower.state.eventLogs.get(owner)?.entries.values() ?? [])])
    .filter(({ revision }) => revision > options.after)
    .sort((a, b) => a.revision - b.revision);
  const coming: Event[] = [];
  let wake: () => void = () => {};
  let behind = false;
  const stopListening = follower.listen((change) => {
    for (const { revision, event } of change.events) {
      if (revision <= options.after || !owners.includes(event.tenantId ?? 'cluster')) continue;
      behind ||= coming.length >= MAX_BEHIND;
      if (!behind) coming.push(toEvent(revision, event));
    }
    if (change.events.length > 0) wake();
  });
  const abort = (): void => wake();
  options.signal.addEventListener('abort', abort);
  try {
    for (const { revision, events } of kept) {
      for (const event of events) {
        if (options.signal.aborted) return;
        yield toEvent(revision, event);
      }
    }
    while (options.follow && !options.signal.aborted) {
      const event = coming.shift();
      if (event) yield event;
      else if (behind) return;
      else await new Promise<void>((resolve) => (wake = resolve));
    }
  } finally {
    stopListening();
    options.signal.removeEventListener('abort', abort);
  }
}

/**
 * Deletes each owner's oldest events above the bound, so that none pushes out another's. Called by the reconciler,
 * with some slack so that it is seldom.
 */
export async function trimEvents({ settings, committer, follower }: Cluster): Promise<void> {
  const { keepEvents } = settings;
  const slack = Math.ceil(keepEvents / 10);
  const tooLong = [...follower.state.eventLogs].filter(([, { count }]) => count > keepEvents + slack);
  if (tooLong.length === 0) return;
  await committer.commit((state, change) => {
    for (const [owner] of tooLong) {
      const log = state.eventLogs.get(owner);
      let surplus = (log?.count ?? 0) - keepEvents;
      for (const [key, { revision, events }] of log?.entries ?? []) {
        if (surplus < events.length || change.ops.length >= TRIM_BATCH) break;
        change.delete(key, revision);
        surplus -= events.length;
      }
    }
    return change.ops.length > 0;
  });
}

/** Tells operators that somebody was not let in; at most 60 a minute, so that knocking does not push out the rest. */
export class Refusals {
  readonly #cluster: Cluster;
  #minute = 0;
  #told = 0;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
  }

  async tell(event: Omit<EventRecord, 'at'>): Promise<void> {
    const { clock, committer, logger } = this.#cluster;
    logger.warn({ ...event }, 'refused');
    const minute = Math.floor(clock.monotonic() / 60_000);
    if (minute !== this.#minute) this.#told = 0;
    this.#minute = minute;
    this.#told += 1;
    if (this.#told > REFUSALS_PER_MINUTE) return;
    await committer.commit((_state, change) => {
      change.tell(event);
      return true;
    });
  }
}

function toEvent(revision: number, { tenantId: _tenantId, ...event }: EventRecord): Event {
  return { revision, ...event };
}
