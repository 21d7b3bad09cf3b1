// Tenants and their tokens.
import { CloisterError } from '@cloister/model/errors.ts';
import { newTenantId, type TenantId, type TokenId } from '@cloister/model/ids.ts';
import type { Token } from '@cloister/model/tenant.ts';
import { addToken } from '../auth.ts';
import { keys } from '../keys.ts';
import type { TenantRecord, TokenRecord } from '../records.ts';
import type { Handlers, Parts } from './call.ts';

const VERSION = '0.1.0';
const MAX_TENANTS = 100_000;
const MAX_TOKENS_PER_TENANT = 1_000;

type Names =
  | 'health'
  | 'whoami'
  | 'listTenants'
  | 'createTenant'
  | 'createToken'
  | 'revokeToken'
  | 'listTokens';

export function tenantHandlers({ cluster }: Parts): Handlers<Names> {
  const { follower, committer } = cluster;
  const findTenant = (key: string | undefined): TenantRecord => {
    const { tenants, tenantIdByName } = follower.state;
    const held =
      tenants.get(key as TenantId) ?? tenants.get(tenantIdByName.get(key ?? '') ?? (key as TenantId));
    if (!held) throw new CloisterError('not-found', `There is no tenant "${key}".`);
    return held.record;
  };
  const tokensOf = (tenantId: TenantId): TokenRecord[] =>
    [...follower.state.tokens.values()].flatMap(({ record }) =>
      record.tenantId === tenantId ? [record] : [],
    );
  return {
    health: () => ({ status: 'ok', version: VERSION }),
    whoami: ({ caller }) => ({ tenant: caller.tenant, scope: caller.scope }),
    listTenants: () => {
      const tenants = [...follower.state.tenants.values()].map(({ record }) => record);
      return { tenants: tenants.sort((a, b) => (a.name < b.name ? -1 : 1)) };
    },
    createTenant: async ({ body: { name } }) => {
      const id = newTenantId();
      await committer.commit((state, change) => {
        if (state.tenantIdByName.has(name)) {
          throw new CloisterError(
            'name.taken',
            `Could not make the tenant: there is one named ${name} already.`,
          );
        }
        if (state.tenants.size >= MAX_TENANTS)
          throw new CloisterError('limit.exceeded', 'There are too many tenants.');
        const record: TenantRecord = { id, name, createdAt: change.nowMs };
        change.put(keys.tenantName(name), id, 0);
        change.put(keys.tenant(id), record, 0);
        return true;
      });
      return findTenant(id);
    },
    createToken: async ({ params, body }) => {
      const tenant = findTenant(params.tenant);
      if (tokensOf(tenant.id).length >= MAX_TOKENS_PER_TENANT) {
        throw new CloisterError(
          'limit.exceeded',
          `The tenant has ${MAX_TOKENS_PER_TENANT} tokens already; revoke some.`,
        );
      }
      let made: ReturnType<typeof addToken> | undefined;
      await committer.commit((_state, change) => {
        const { scope = 'tenant', ttlMs } = body;
        made = addToken(change, { tenantId: tenant.id, scope, ...(ttlMs === undefined ? {} : { ttlMs }) });
        return true;
      });
      if (!made) throw new CloisterError('internal', 'The token was not made.');
      return made;
    },
    revokeToken: async ({ params }) => {
      await committer.commit((state, change) => {
        const token = state.tokens.get(params.token as TokenId);
        if (!token) throw new CloisterError('not-found', `There is no token "${params.token}".`);
        change.delete(keys.token(token.record.id), token.modRevision);
        return true;
      });
      return undefined;
    },
    listTokens: ({ params }) => ({ tokens: tokensOf(findTenant(params.tenant).id).map(withoutHash) }),
  };
}

function withoutHash({ secretHash: _secretHash, ...token }: TokenRecord): Token {
  return token;
}
