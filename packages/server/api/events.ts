// What happened.
import { readEvents } from '../events.ts';
import type { Handlers, Parts } from './call.ts';

export function eventHandlers({ cluster }: Parts): Handlers<'events'> {
  return {
    events: ({ caller, query, signal }) =>
      readEvents(
        cluster,
        { tenantId: caller.tenant.id, scope: caller.scope },
        { after: query.after ?? 0, follow: query.follow === true, signal },
      ),
  };
}
