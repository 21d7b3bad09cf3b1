// Typed identifiers. Each kind of object has its own brand and prefix, so that a node's id cannot be passed
// where an allocation's is wanted, and a reader of a log sees at once what an id names.
// 128 random bits in lower-case base32 (RFC 4648 alphabet, no padding): unguessable, and safe in file names,
// host names, cgroup paths and URLs.
import { randomBytes } from 'node:crypto';
import Type, { type TUnsafe } from 'typebox';

declare const brand: unique symbol;
type Branded<Brand extends string> = string & { readonly [brand]: Brand };

export type TenantId = Branded<'tenant'>;
export type TokenId = Branded<'token'>;
export type JobId = Branded<'job'>;
export type AllocationId = Branded<'allocation'>;
export type NodeId = Branded<'node'>;
export type AgentInstanceId = Branded<'agent-instance'>;

const ALPHABET = 'abcdefghijklmnopqrstuvwxyz234567';
const ENCODED_LENGTH = 26; // ceil(128 / 5)

function randomBase32(): string {
  let value = BigInt(`0x${randomBytes(16).toString('hex')}`);
  let text = '';
  for (let i = 0; i < ENCODED_LENGTH; i++) {
    text += ALPHABET.charAt(Number(value & 31n));
    value >>= 5n;
  }
  return text;
}

export const newTenantId = (): TenantId => `ten-${randomBase32()}` as TenantId;
export const newTokenId = (): TokenId => `tok-${randomBase32()}` as TokenId;
export const newJobId = (): JobId => `job-${randomBase32()}` as JobId;
export const newAllocationId = (): AllocationId => `alc-${randomBase32()}` as AllocationId;
export const newNodeId = (): NodeId => `nod-${randomBase32()}` as NodeId;
export const newAgentInstanceId = (): AgentInstanceId => `agt-${randomBase32()}` as AgentInstanceId;

function idSchema<Id extends string>(prefix: string, title: string): TUnsafe<Id> {
  return Type.Unsafe<Id>(
    Type.String({ pattern: `^${prefix}-[a-z2-7]{${ENCODED_LENGTH}}$`, maxLength: 64, title }),
  );
}

export const TenantIdSchema = idSchema<TenantId>('ten', 'Tenant id');
export const TokenIdSchema = idSchema<TokenId>('tok', 'Token id');
export const JobIdSchema = idSchema<JobId>('job', 'Job id');
export const AllocationIdSchema = idSchema<AllocationId>('alc', 'Allocation id');
export const NodeIdSchema = idSchema<NodeId>('nod', 'Node id');
