// The log of what happened: written in the transactions that it tells of, read by tenants (their own) and operators
// (the nodes' too), and kept bounded.
import type { Event } from '@cloister/model/event.ts';
import type { TenantId } from '@cloister/model/ids.ts';
import type { TokenScope } from '@cloister/model/tenant.ts';
import type { EventRecord } from './records.ts';
import type { Cluster } from './settings.ts';

/** Events behind which a reader may fall before its stream is ended; it can go on with "after". */
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
  const queue: Event[] = [];
  let wake: () => void = () => {};
  let behind = false;
  const take = (revision: number, event: EventRecord): void => {
    if (revision <= options.after || !maySee(reader, event)) return;
    behind ||= queue.length >= MAX_BEHIND;
    if (!behind) queue.push(toEvent(revision, event));
  };
  // What is there and what comes: both taken before anything is awaited, so nothing falls in between.
  for (const { revision, events } of follower.state.eventLog.values())
    for (const event of events) take(revision, event);
  const stopListening = follower.listen((change) => {
    for (const { revision, event } of change.events) take(revision, event);
    if (change.events.length > 0) wake();
  });
  const abort = (): void => wake();
  options.signal.addEventListener('abort', abort);
  try {
    while (!options.signal.aborted) {
      const event = queue.shift();
      if (event) yield event;
      else if (!options.follow || behind) return;
      else await new Promise<void>((resolve) => (wake = resolve));
    }
  } finally {
    stopListening();
    options.signal.removeEventListener('abort', abort);
  }
}

/** Deletes the oldest events above the bound. Called by the reconciler, with some slack so that it is seldom. */
export async function trimEvents(cluster: Cluster): Promise<void> {
  const { settings, committer } = cluster;
  const slack = Math.ceil(settings.keepEvents / 10);
  if (countEvents(cluster) <= settings.keepEvents + slack) return;
  await committer.commit((state, change) => {
    let surplus = countEvents(cluster) - settings.keepEvents;
    for (const [key, { revision, events }] of state.eventLog) {
      if (surplus < events.length || change.ops.length >= TRIM_BATCH) break;
      change.delete(key, revision);
      surplus -= events.length;
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

function countEvents({ follower }: Cluster): number {
  let count = 0;
  for (const { events } of follower.state.eventLog.values()) count += events.length;
  return count;
}

function maySee(reader: EventReader, { tenantId }: EventRecord): boolean {
  return tenantId === undefined ? reader.scope === 'operator' : tenantId === reader.tenantId;
}

function toEvent(revision: number, { tenantId: _tenantId, ...event }: EventRecord): Event {
  return { revision, ...event };
}
