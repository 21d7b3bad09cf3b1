// What this node shows to registries, and for whose work. The node's operator brings it, in a file that nobody else
// may read.
import { stat } from 'node:fs/promises';
import type { RegistryCredentials } from '@cloister/image/registry.ts';
import { readFileIfThere } from '@cloister/kit/file.ts';
import { parseJson } from '@cloister/link/json.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { TenantIdSchema } from '@cloister/model/ids.ts';
import Type from 'typebox';

const FileSchema = Type.Record(
  Type.String({ maxLength: 300 }),
  Type.Object(
    {
      username: Type.String({ maxLength: 256 }),
      password: Type.String({ maxLength: 16_384 }),
      // A name where an id belongs would keep everybody out, or, worse, be thought to let somebody in.
      tenants: Type.Optional(Type.Array(TenantIdSchema, { maxItems: 10_000 })),
    },
    { additionalProperties: false },
  ),
);

/** By the registry's host, as references have it. No path: none. Throws `request.invalid` when the file is missing, wrong, or open to others. */
export async function readCredentials(
  path: string | undefined,
): Promise<ReadonlyMap<string, RegistryCredentials>> {
  if (path === undefined) return new Map();
  const text = await readFileIfThere(path);
  if (text === undefined)
    throw new CloisterError('request.invalid', `There are no credentials of registries in ${path}.`);
  if (((await stat(path)).mode & 0o077) !== 0) {
    const message = `${path} holds credentials and others may read it: chmod 600 ${path}`;
    throw new CloisterError('request.invalid', message);
  }
  return new Map(Object.entries(parseJson(FileSchema, text, `the credentials in ${path}`)));
}
