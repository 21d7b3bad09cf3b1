// What this node shows to registries, and for whose work. The node's operator brings it, in a file that nobody else
// may read.
import { stat } from 'node:fs/promises';
import { parseReference } from '@cloister/image/reference.ts';
import { readFileIfThere } from '@cloister/kit/file.ts';
import { parseJson } from '@cloister/link/json.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import Type, { type Static } from 'typebox';

const EntrySchema = Type.Object(
  {
    username: Type.String({ maxLength: 256 }),
    password: Type.String({ maxLength: 16_384 }),
    /** Ids of those whose work may use images of this registry. Default: everybody's. */
    tenants: Type.Optional(Type.Array(Type.String({ maxLength: 64 }), { maxItems: 10_000 })),
  },
  { additionalProperties: false },
);
const FileSchema = Type.Record(Type.String({ maxLength: 300 }), EntrySchema);

export class RegistryCredentials {
  readonly #entries: ReadonlyMap<string, Static<typeof EntrySchema>>;

  private constructor(entries: Readonly<Record<string, Static<typeof EntrySchema>>>) {
    this.#entries = new Map(Object.entries(entries));
  }

  /** No path: none. Throws `request.invalid` when the file is missing, wrong, or open to others. */
  static async read(path: string | undefined): Promise<RegistryCredentials> {
    if (path === undefined) return new RegistryCredentials({});
    const text = await readFileIfThere(path);
    if (text === undefined)
      throw new CloisterError('request.invalid', `There are no credentials of registries in ${path}.`);
    if (((await stat(path)).mode & 0o077) !== 0) {
      const message = `${path} holds credentials and others may read it: chmod 600 ${path}`;
      throw new CloisterError('request.invalid', message);
    }
    return new RegistryCredentials(parseJson(FileSchema, text, `the credentials in ${path}`));
  }

  /** By the registry's host, as references have it. */
  of(registry: string): { readonly username: string; readonly password: string } | undefined {
    return this.#entries.get(registry);
  }

  /**
   * Throws `image.unauthorized` when the registry's images are for others. Asked before the image is looked for: what
   * one tenant's work brought to the node is not there for another's. `tenantId` undefined: it is not known.
   */
  requireAllowed(tenantId: string | undefined, reference: string): void {
    const { registry } = parseReference(reference);
    const tenants = this.#entries.get(registry)?.tenants;
    if (!tenants || (tenantId !== undefined && tenants.includes(tenantId))) return;
    const message = `The operator of this node keeps the images of ${registry} to certain tenants.`;
    throw new CloisterError('image.unauthorized', message);
  }
}
