// An image as the nodes have it, and what its configuration asks of a container.
import Type, { type Static } from 'typebox';
import { NodeIdSchema } from './ids.ts';
import { ReasonSchema, TimeSchema } from './schema.ts';

/** The parts of an OCI image configuration that mean something when it runs. */
export interface ImageConfig {
  readonly entrypoint: readonly string[];
  readonly cmd: readonly string[];
  /** "NAME=value", in the image's order. */
  readonly env: readonly string[];
  /** "" is root. */
  readonly user: string;
  /** "" is "/". */
  readonly workingDir: string;
  /** A name or a number; "" is SIGTERM. */
  readonly stopSignal: string;
  /** Absolute paths, sorted. */
  readonly volumes: readonly string[];
}

export const ImageSchema = Type.Object({
  reference: Type.String({ description: 'Normalized: registry/name:tag or registry/name@digest.' }),
  digest: Type.String({ description: "Of the manifest for this node's platform." }),
  nodeId: NodeIdSchema,
  sizeBytes: Type.Integer({ description: 'Of its compressed layers.' }),
  blockBytes: Type.Integer({ description: 'Of its block image.' }),
  pulledAt: TimeSchema,
});
export type Image = Static<typeof ImageSchema>;

/** How far a pull is. Sent as it goes; `done` or `failed` ends it. */
export const PullProgressSchema = Type.Object({
  reference: Type.String(),
  nodeId: NodeIdSchema,
  stage: Type.Union([
    Type.Literal('resolving'),
    Type.Literal('fetching'),
    Type.Literal('unpacking'),
    Type.Literal('building'),
    Type.Literal('done'),
    Type.Literal('failed'),
  ]),
  fetchedBytes: Type.Integer(),
  totalBytes: Type.Integer(),
  digest: Type.Optional(Type.String()),
  reason: Type.Optional(ReasonSchema),
});
export type PullProgress = Static<typeof PullProgressSchema>;
