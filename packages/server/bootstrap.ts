// The first start: the cluster's authority, a tenant, and an operator's token; later starts find them.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import { createAuthority, type KeyAndCertificate } from '@cloister/link/pki.ts';
import { newTenantId } from '@cloister/model/ids.ts';
import { addToken } from './auth.ts';
import { Change } from './commit.ts';
import { keys } from './keys.ts';
import type { Held, TenantRecord, TokenRecord } from './records.ts';
import type { Cluster } from './settings.ts';

const DEFAULT_TENANT = 'default';

/** DATADIR/ca.pem is for agents and clients; DATADIR/ca-key.pem is the cluster's greatest secret. */
export async function openAuthority(dataDir: string): Promise<KeyAndCertificate> {
  await mkdir(dataDir, { recursive: true, mode: 0o700 });
  const certificateFile = join(dataDir, 'ca.pem');
  const keyFile = join(dataDir, 'ca-key.pem');
  const certificatePem = await readFileIfThere(certificateFile);
  const keyPem = await readFileIfThere(keyFile);
  if (certificatePem !== undefined && keyPem !== undefined) return { certificatePem, keyPem };
  // The certificate is written last: without it, nobody has been given anything that this key signed.
  if (certificatePem !== undefined)
    throw new Error(`${certificateFile} is there, but ${keyFile} is not: restore it.`);
  const made = await createAuthority();
  await writeFileDurably(keyFile, made.keyPem, 0o600);
  await writeFileDurably(certificateFile, made.certificatePem, 0o644);
  return made;
}

/** Makes the tenant "default", and an operator's token of it when there is none that still opens anything. */
export async function ensureOperator(cluster: Cluster): Promise<void> {
  const { committer, follower, settings, clock, logger } = cluster;
  const isOperators = ({ record: { scope, expiresAt } }: Held<TokenRecord>): boolean =>
    scope === 'operator' && (expiresAt === undefined || expiresAt > clock.now());
  if ([...follower.state.tokens.values()].some(isOperators)) return;
  const file = settings.operatorTokenFile ?? join(settings.dataDir, 'operator.token');
  const known = follower.state.tenantIdByName.get(DEFAULT_TENANT);
  const tenantId = known ?? newTenantId();
  const prepared = new Change(clock.now());
  if (!known) {
    const tenant: TenantRecord = { id: tenantId, name: DEFAULT_TENANT, createdAt: prepared.nowMs };
    prepared.put(keys.tenantName(DEFAULT_TENANT), tenantId, 0);
    prepared.put(keys.tenant(tenantId), tenant, 0);
  }
  const { secret } = addToken(prepared, { tenantId, scope: 'operator' });
  // The file first: a token that the store knows and nobody has would lock everybody out.
  await writeFileDurably(file, `${secret}\n`, 0o600);
  await committer.commit((_state, change) => {
    change.compare.push(...prepared.compare);
    change.ops.push(...prepared.ops);
    return true;
  });
  logger.info({ file }, "an operator's token was written");
}
