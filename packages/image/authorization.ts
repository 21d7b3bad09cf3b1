// What a registry wants to see before it gives: nothing, a user and a password, or a token from a token server that
// it names. Credentials go to the registry that they are configured for and to the token server that it names, only.
import { CloisterError } from '@cloister/model/errors.ts';
import Type from 'typebox';
import { Compile } from 'typebox/compile';

export interface Credentials {
  readonly username: string;
  readonly password: string;
}

export type Challenge =
  | { readonly scheme: 'basic' }
  | { readonly scheme: 'bearer'; readonly realm: string; readonly service: string | undefined };

const MAX_HEADER_LENGTH = 8192;
const MAX_TOKEN_LENGTH = 65_536;
const TokenSchema = Compile(
  Type.Object({
    token: Type.Optional(Type.String({ maxLength: MAX_TOKEN_LENGTH })),
    access_token: Type.Optional(Type.String({ maxLength: MAX_TOKEN_LENGTH })),
  }),
);
const PARAMETER = /([a-zA-Z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))/g;

/** Of a WWW-Authenticate header. Undefined when it has no scheme that we know. A token is preferred to a password. */
export function parseChallenge(header: string | null): Challenge | undefined {
  if (header === null || header.length > MAX_HEADER_LENGTH) return undefined;
  const bearer = /(?:^|,)\s*bearer\s+(.*)$/i.exec(header)?.[1];
  if (bearer !== undefined) {
    const parameters = new Map<string, string>();
    for (const [, name, quoted, plain] of bearer.matchAll(PARAMETER)) {
      const key = name?.toLowerCase() ?? '';
      if (!parameters.has(key)) parameters.set(key, quoted?.replaceAll(/\\(.)/g, '$1') ?? plain ?? '');
    }
    const realm = parameters.get('realm');
    if (realm !== undefined && URL.canParse(realm))
      return { scheme: 'bearer', realm, service: parameters.get('service') };
  }
  return /(?:^|,)\s*basic\b/i.test(header) ? { scheme: 'basic' } : undefined;
}

export function basicAuthorization({ username, password }: Credentials): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
}

/** Where to ask for a token that may pull from this repository: our scope, whatever the challenge asked for. */
export function tokenUrl(challenge: Challenge & { scheme: 'bearer' }, repository: string): URL {
  const url = new URL(challenge.realm);
  if (challenge.service !== undefined) url.searchParams.set('service', challenge.service);
  url.searchParams.set('scope', `repository:${repository}:pull`);
  return url;
}

/** Throws 'image.unauthorized' when the answer has no token. */
export function parseToken(bytes: Buffer, host: string): string {
  let document: unknown;
  try {
    document = JSON.parse(bytes.toString('utf8'));
  } catch {
    // Not JSON: no token.
  }
  const token = TokenSchema.Check(document) ? (document.token ?? document.access_token) : undefined;
  if (!token || !/^[\x21-\x7e]+$/.test(token)) {
    throw new CloisterError('image.unauthorized', `The token server of ${host} answered without a token.`);
  }
  return token;
}
