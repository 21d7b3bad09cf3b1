// A machine of the cluster.
import Type, { type Static } from 'typebox';
import { NodeIdSchema } from './ids.ts';
import { TimeSchema } from './schema.ts';

export const NodeRoleSchema = Type.Union([
  Type.Literal('worker'),
  Type.Literal('control'),
  Type.Literal('system'),
]);
export type NodeRole = Static<typeof NodeRoleSchema>;

/** What work may use, after what the system keeps for itself. */
export const CapacitySchema = Type.Object(
  {
    cpuMilli: Type.Integer({ minimum: 0 }),
    memoryMiB: Type.Integer({ minimum: 0 }),
    diskMiB: Type.Integer({ minimum: 0 }),
    sandboxes: Type.Integer({ minimum: 0, description: 'How many sandboxes at once.' }),
    sandboxOverheadMiB: Type.Integer({
      minimum: 0,
      description: 'Memory that each sandbox costs beyond its own.',
    }),
  },
  { additionalProperties: false },
);
export type Capacity = Static<typeof CapacitySchema>;

export const NodeFactsSchema = Type.Object(
  {
    hostname: Type.String({ maxLength: 253 }),
    architecture: Type.String({ maxLength: 32, description: 'As in image platforms: amd64, arm64.' }),
    hostKernel: Type.String({ maxLength: 128 }),
    guestKernel: Type.String({ maxLength: 128 }),
    vmm: Type.String({ maxLength: 64, description: 'For example "qemu-microvm".' }),
    acceleration: Type.Union([Type.Literal('kvm'), Type.Literal('tcg')]),
    agentVersion: Type.String({ maxLength: 64 }),
  },
  { additionalProperties: false },
);
export type NodeFacts = Static<typeof NodeFactsSchema>;

/** ready: its session is live; suspect: lost a moment ago; down: lost for longer than the grace period. */
export const NodeHealthSchema = Type.Union([
  Type.Literal('ready'),
  Type.Literal('suspect'),
  Type.Literal('down'),
]);
export type NodeHealth = Static<typeof NodeHealthSchema>;

export const NodeSchema = Type.Object({
  id: NodeIdSchema,
  name: Type.String(),
  role: NodeRoleSchema,
  labels: Type.Record(Type.String(), Type.String()),
  health: NodeHealthSchema,
  cordoned: Type.Boolean(),
  capacity: CapacitySchema,
  used: Type.Object({
    cpuMilli: Type.Integer(),
    memoryMiB: Type.Integer(),
    diskMiB: Type.Integer(),
    sandboxes: Type.Integer(),
  }),
  facts: Type.Optional(NodeFactsSchema),
  joinedAt: TimeSchema,
  lastSeenAt: Type.Optional(TimeSchema),
  version: Type.Integer(),
});
export type Node = Static<typeof NodeSchema>;

export const NodeNameSchema = Type.String({
  pattern: '^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$',
  maxLength: 63,
});
