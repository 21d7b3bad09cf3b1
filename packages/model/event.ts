// What happened, for people and programs that follow along.
import Type, { type Static } from 'typebox';
import { TimeSchema } from './schema.ts';

export const EVENT_TYPES = [
  'job.created',
  'job.stopping',
  'job.done',
  'job.removed',
  'allocation.created',
  'allocation.placed',
  'allocation.pulling',
  'allocation.starting',
  'allocation.running',
  'allocation.exited',
  'allocation.failed',
  'allocation.lost',
  'node.joined',
  'node.ready',
  'node.suspect',
  'node.down',
  'node.removed',
  'node.cordoned',
  'node.uncordoned',
  'node.session-refused',
  'node.join-refused',
] as const;

export const EventSchema = Type.Object({
  revision: Type.Integer({
    description: 'Of the store; events are ordered by it. Pass it as "after" to go on from here.',
  }),
  at: TimeSchema,
  type: Type.Unsafe<EventType>(Type.Union(EVENT_TYPES.map((type) => Type.Literal(type)))),
  subject: Type.String({ description: 'The id of the job, allocation or node.' }),
  name: Type.Optional(Type.String({ description: 'Its name, for people.' })),
  message: Type.Optional(Type.String({ maxLength: 4096 })),
});
export type EventType = (typeof EVENT_TYPES)[number];
export type Event = Static<typeof EventSchema>;
