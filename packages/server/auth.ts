// Who calls. Bearer tokens `clo_ID_SECRET`; the state has their hashes.
import { CloisterError } from '@cloister/model/errors.ts';
import { newTokenId, type TenantId, type TokenId } from '@cloister/model/ids.ts';
import type { Token, TokenScope } from '@cloister/model/tenant.ts';
import type { Change } from './commit.ts';
import { keys } from './keys.ts';
import type { TenantRecord, TokenRecord } from './records.ts';
import { newSecret, parseSecret, secretMatches } from './secrets.ts';
import type { Cluster } from './settings.ts';

export interface Caller {
  readonly tenant: TenantRecord;
  readonly scope: TokenScope;
}

/** Throws `auth.missing` or `auth.invalid`; a wrong secret, an unknown token and one that expired are told the same. */
export function authenticate(cluster: Cluster, authorization: string | undefined): Caller {
  if (!authorization) throw new CloisterError('auth.missing', 'This request has no credential.');
  const { state } = cluster.follower;
  const text = /^Bearer ([!-~]{1,256})$/i.exec(authorization)?.[1];
  const parsed = parseSecret('clo', text ?? '');
  const token = parsed && state.tokens.get(parsed.id as TokenId)?.record;
  const matches = secretMatches(parsed?.secret ?? '', token?.secretHash);
  const tenant = token && state.tenants.get(token.tenantId)?.record;
  const expired = token?.expiresAt !== undefined && token.expiresAt <= cluster.clock.now();
  if (!matches || !token || !tenant || expired) {
    throw new CloisterError('auth.invalid', 'The token of this request is not valid.');
  }
  return { tenant, scope: token.scope };
}

/** Adds a new token to the change. The secret is in the answer, and nowhere else. */
export function addToken(
  change: Change,
  request: { readonly tenantId: TenantId; readonly scope: TokenScope; readonly ttlMs?: number },
): { readonly token: Token; readonly secret: string } {
  const id = newTokenId();
  const secret = newSecret('clo', id);
  const { tenantId, scope, ttlMs } = request;
  const token: Token = {
    id,
    tenantId,
    scope,
    createdAt: change.nowMs,
    ...(ttlMs === undefined ? {} : { expiresAt: change.nowMs + ttlMs }),
  };
  const record: TokenRecord = { ...token, secretHash: secret.hash };
  change.put(keys.token(id), record, 0);
  return { token, secret: secret.text };
}
