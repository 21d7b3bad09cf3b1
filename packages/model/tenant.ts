// Who owns what, and the secrets that prove it.
import Type, { type Static } from 'typebox';
import { TenantIdSchema, TokenIdSchema } from './ids.ts';
import { NodeNameSchema, NodeRoleSchema } from './node.ts';
import { TimeSchema } from './schema.ts';

export const TenantNameSchema = Type.String({
  pattern: '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$',
  maxLength: 63,
});

export const TenantSchema = Type.Object({
  id: TenantIdSchema,
  name: TenantNameSchema,
  createdAt: TimeSchema,
});
export type Tenant = Static<typeof TenantSchema>;

/** tenant: its own objects; operator: its own objects, and the cluster's nodes, tenants and tokens. */
export const TokenScopeSchema = Type.Union([Type.Literal('tenant'), Type.Literal('operator')]);
export type TokenScope = Static<typeof TokenScopeSchema>;

export const TokenSchema = Type.Object({
  id: TokenIdSchema,
  tenantId: TenantIdSchema,
  scope: TokenScopeSchema,
  createdAt: TimeSchema,
  expiresAt: Type.Optional(TimeSchema),
});
export type Token = Static<typeof TokenSchema>;

/** The secret is shown once, here, and stored only as a hash. */
export const NewTokenSchema = Type.Object({ token: TokenSchema, secret: Type.String() });

export const JoinTokenRequestSchema = Type.Object(
  {
    role: Type.Optional(NodeRoleSchema),
    nodeName: Type.Optional(NodeNameSchema),
    ttlMs: Type.Integer({ minimum: 1, maximum: 86_400_000, default: 3_600_000 }),
  },
  { additionalProperties: false },
);
export const JoinTokenSchema = Type.Object({
  secret: Type.String(),
  role: NodeRoleSchema,
  nodeName: Type.Optional(Type.String()),
  expiresAt: TimeSchema,
});

export const JoinRequestSchema = Type.Object(
  {
    token: Type.String({ maxLength: 256 }),
    nodeName: NodeNameSchema,
    instanceId: Type.String({ pattern: '^agt-[a-z2-7]{26}$' }),
    csrPem: Type.String({
      maxLength: 8192,
      description: 'PKCS #10, PEM; ECDSA P-256. Its subject is ignored.',
    }),
    labels: Type.Record(
      Type.String({ pattern: '^[a-zA-Z0-9][a-zA-Z0-9./_-]{0,62}$' }),
      Type.String({ maxLength: 256 }),
      { additionalProperties: false, default: {}, maxProperties: 64 },
    ),
  },
  { additionalProperties: false },
);
export type JoinRequest = Static<typeof JoinRequestSchema>;

export const JoinReplySchema = Type.Object({
  nodeId: Type.String(),
  certificatePem: Type.String(),
  caPem: Type.String(),
  linkAddress: Type.String({ description: "host:port of the agents' gRPC endpoint." }),
});
export type JoinReply = Static<typeof JoinReplySchema>;
