// cloister tokens: the tenants' credentials, for operators.
import { optional, parseDurationMs } from '../arguments.ts';
import { defineCommand } from '../command.ts';
import { attempt, UsageError } from '../failure.ts';
import { formatAge } from '../format.ts';

export const tokens = defineCommand({
  usage: 'tokens ls TENANT | create TENANT [--scope SCOPE] [--ttl TIME] | revoke TOKEN',
  options: {
    scope: { type: 'string', value: 'SCOPE', help: 'create: tenant or operator. Default: tenant.' },
    ttl: {
      type: 'string',
      value: 'TIME',
      help: 'create: how long it is good for: 12h, 30d. Default: until it is revoked.',
    },
  },
  min: 2,
  max: 2,
  details: 'create prints the secret, which is shown this once.',
  example: 'cloister token create acme --ttl 30d > acme.token',
  async run(context, values, [action = '', key = '']) {
    const ttlMs = optional('--ttl', values.ttl, parseDurationMs);
    const scope = optional('--scope', values.scope, parseScope);
    if (!['ls', 'create', 'revoke'].includes(action))
      throw new UsageError(
        `"${action.slice(0, 40)}" is nothing to do with tokens; it is one of ls, create, revoke.`,
      );
    const client = await context.client();
    if (action === 'create') {
      const body = { ...(scope === undefined ? {} : { scope }), ...(ttlMs === undefined ? {} : { ttlMs }) };
      const made = await attempt(`make a token for ${key}`, () => client.createToken(key, body));
      if (context.json) await context.document(made);
      else await context.line(made.secret);
    } else if (action === 'revoke') {
      await attempt(`revoke ${key}`, () => client.revokeToken(key));
      if (context.json) await context.document({ revoked: key });
      else await context.line(key);
    } else {
      const { tokens } = await attempt(`list the tokens of ${key}`, () => client.listTokens(key));
      if (context.json) await context.document({ tokens });
      else {
        const rows = tokens.map((token) => [
          token.id,
          token.scope,
          formatAge(token.createdAt, context.now()),
          token.expiresAt === undefined ? 'never' : new Date(token.expiresAt).toISOString(),
        ]);
        await context.table(
          [{ title: 'ID' }, { title: 'SCOPE' }, { title: 'CREATED' }, { title: 'EXPIRES' }],
          rows,
        );
      }
    }
    return 0;
  },
});

function parseScope(text: string): 'tenant' | 'operator' {
  if (text === 'tenant' || text === 'operator') return text;
  throw new UsageError(`"${text.slice(0, 40)}" is not a scope; it is tenant or operator.`);
}
