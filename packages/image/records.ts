// What images this node has: a file each beside its block image, durable. A block image without a record, or a record
// without its block image, is what a crash left, and goes when the folder is opened.
import { mkdir, readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileDurably } from '@cloister/kit/file.ts';
import type { Logger } from '@cloister/kit/log.ts';
import type { ImageConfig } from '@cloister/model/image.ts';
import Type from 'typebox';
import { Compile } from 'typebox/compile';

export interface ImageReference {
  /** Normalized. */
  readonly reference: string;
  /** When it was last looked up at its registry. */
  readonly pulledAtMs: number;
  /** The user whose password the registry saw then. Who may not use that password must ask the registry. */
  readonly pulledAs?: string;
}

export interface ImageRecord {
  /** Of the manifest for this node's platform. */
  readonly digest: string;
  readonly references: readonly ImageReference[];
  readonly config: ImageConfig;
  /** Digests of the compressed layers, each once. */
  readonly layers: readonly string[];
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly lastUsedAtMs: number;
}

const WordsSchema = Type.Array(Type.String());
const RecordSchema = Compile(
  Type.Object({
    digest: Type.String({ pattern: '^sha256:[a-f0-9]{64}$' }),
    references: Type.Array(
      Type.Object({
        reference: Type.String(),
        pulledAtMs: Type.Number(),
        pulledAs: Type.Optional(Type.String()),
      }),
    ),
    config: Type.Object({
      entrypoint: WordsSchema,
      cmd: WordsSchema,
      env: WordsSchema,
      user: Type.String(),
      workingDir: Type.String(),
      stopSignal: Type.String(),
      volumes: WordsSchema,
    }),
    layers: WordsSchema,
    sizeBytes: Type.Integer(),
    blockBytes: Type.Integer(),
    lastUsedAtMs: Type.Number(),
  }),
);

export class Records {
  readonly #folder: string;
  readonly #byDigest = new Map<string, ImageRecord>();
  readonly #digestOf = new Map<string, string>();

  private constructor(folder: string) {
    this.#folder = folder;
  }

  static async open(folder: string, logger: Logger): Promise<Records> {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const records = new Records(folder);
    const names = new Set(await readdir(folder));
    for (const name of [...names].filter((other) => other.endsWith('.json'))) {
      const record = await readRecord(join(folder, name));
      const isWhole = record && (await sizeOf(records.blockPath(record.digest))) === record.blockBytes;
      if (!isWhole || name !== `${hexOf(record.digest)}.json`) {
        logger.warn({ file: name }, 'dropping the record of an image that is not there as recorded');
        continue;
      }
      records.#index(record);
      names.delete(name);
      names.delete(`${hexOf(record.digest)}.erofs`);
    }
    for (const name of names) await rm(join(folder, name), { recursive: true, force: true });
    return records;
  }

  blockPath(digest: string): string {
    return join(this.#folder, `${hexOf(digest)}.erofs`);
  }

  async hasBlock(digest: string): Promise<boolean> {
    return (await sizeOf(this.blockPath(digest))) !== undefined;
  }

  all(): ImageRecord[] {
    return [...this.#byDigest.values()];
  }

  get(digest: string): ImageRecord | undefined {
    return this.#byDigest.get(digest);
  }

  find(reference: string): ImageRecord | undefined {
    return this.#byDigest.get(this.#digestOf.get(reference) ?? '');
  }

  async put(record: ImageRecord): Promise<void> {
    await writeFileDurably(join(this.#folder, `${hexOf(record.digest)}.json`), `${JSON.stringify(record)}\n`);
    this.#index(record);
  }

  /** The record first: a crash between the two leaves a block image without one, which open() removes. */
  async remove(digest: string): Promise<void> {
    const record = this.#byDigest.get(digest);
    this.#byDigest.delete(digest);
    for (const { reference } of record?.references ?? []) {
      if (this.#digestOf.get(reference) === digest) this.#digestOf.delete(reference);
    }
    await rm(join(this.#folder, `${hexOf(digest)}.json`), { force: true });
    await rm(this.blockPath(digest), { force: true });
  }

  /** Two records may name one reference when a crash came between moving it: the later pull is right. */
  #index(record: ImageRecord): void {
    const before = this.#byDigest.get(record.digest);
    for (const { reference } of before?.references ?? []) {
      if (this.#digestOf.get(reference) === record.digest) this.#digestOf.delete(reference);
    }
    this.#byDigest.set(record.digest, record);
    for (const { reference, pulledAtMs } of record.references) {
      const other = this.find(reference);
      const otherAtMs = other?.references.find((entry) => entry.reference === reference)?.pulledAtMs ?? -1;
      if (pulledAtMs >= otherAtMs) this.#digestOf.set(reference, record.digest);
    }
  }
}

export function hexOf(digest: string): string {
  return digest.slice('sha256:'.length);
}

async function readRecord(path: string): Promise<ImageRecord | undefined> {
  try {
    const document: unknown = JSON.parse(await readFile(path, 'utf8'));
    return RecordSchema.Check(document) ? document : undefined;
  } catch {
    return undefined;
  }
}

async function sizeOf(path: string): Promise<number | undefined> {
  return await stat(path).then(
    ({ size }) => size,
    () => undefined,
  );
}
