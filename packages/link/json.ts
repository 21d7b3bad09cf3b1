// JSON inside messages, checked at the edge: whoever sent it may be an old agent, or no friend.
import { CloisterError } from '@cloister/model/errors.ts';
import type { Static, TSchema } from 'typebox';
import Schema from 'typebox/schema';

const compiled = new WeakMap<TSchema, ReturnType<typeof Schema.Compile>>();

/** Parses and checks. `what` names it in the error, as in "facts_json of hello". Throws `request.invalid`. */
export function parseJson<S extends TSchema>(schema: S, text: string, what: string): Static<S> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new CloisterError('request.invalid', `Could not read ${what}: it is not JSON.`, { cause: error });
  }
  let check = compiled.get(schema);
  if (!check) {
    check = Schema.Compile(schema);
    compiled.set(schema, check);
  }
  if (!check.Check(value)) {
    const [, errors] = check.Errors(value);
    const fields = errors.slice(0, 20).map((error) => ({ path: error.instancePath, message: error.message }));
    const first = fields[0];
    throw new CloisterError(
      'request.invalid',
      `Could not read ${what}: ${first ? `${first.path || '/'} ${first.message}` : 'it has the wrong shape'}.`,
      { fields },
    );
  }
  return value as Static<S>;
}
