// Bearer secrets: PREFIX_ID_SECRET, 256 random bits, shown once and kept as a SHA-256 hash (which needs no salt or
// stretching for a secret that is random). Whether an id is known cannot be told from the time that a refusal takes.
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';

const SECRET = /^(clo|clj)_([a-z0-9-]{1,64})_([A-Za-z0-9_-]{43})$/;
const NOBODY = hashSecret('nobody');

/** clo: a tenant's or operator's API token; clj: a join token. */
export type SecretKind = 'clo' | 'clj';

export function newSecret(kind: SecretKind, id: string): { readonly text: string; readonly hash: string } {
  const secret = randomBytes(32).toString('base64url');
  return { text: `${kind}_${id}_${secret}`, hash: hashSecret(secret) };
}

/** The id and secret of a text, or undefined when it is not of this kind at all. */
export function parseSecret(
  kind: SecretKind,
  text: string,
): { readonly id: string; readonly secret: string } | undefined {
  const [, found, id, secret] = SECRET.exec(text) ?? [];
  return found === kind && id && secret ? { id, secret } : undefined;
}

/** False, after the same work, when there is no hash to compare with. */
export function secretMatches(secret: string, hash: string | undefined): boolean {
  const same = timingSafeEqual(Buffer.from(hashSecret(secret), 'hex'), Buffer.from(hash ?? NOBODY, 'hex'));
  return same && hash !== undefined;
}

function hashSecret(secret: string): string {
  return createHash('sha256').update(secret).digest('hex');
}
