// The repository's files as text, by path: what the rules of tidiness look at. A tree can be given files that it does
// not have, so that each rule can be seen to fail.
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';

export const ROOT = join(import.meta.dirname, '../..');

const MAX_LIST_BYTES = 16 * 1_048_576;
const MAX_FILE_BYTES = 4 * 1_048_576;

export class SourceTree {
  readonly #texts: ReadonlyMap<string, string>;

  constructor(texts: ReadonlyMap<string, string>) {
    this.#texts = texts;
  }

  /** Everything that git has, or would take: what is ignored is nobody's source. */
  static read(root: string): SourceTree {
    const list = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
      cwd: root,
      maxBuffer: MAX_LIST_BYTES,
      timeout: 10_000,
    });
    const texts = new Map<string, string>();
    for (const path of list.toString('utf8').split('\0')) {
      const about = path === '' ? undefined : statSync(join(root, path), { throwIfNoEntry: false });
      if (!about?.isFile() || about.size > MAX_FILE_BYTES) continue;
      texts.set(path, readFileSync(join(root, path), 'utf8'));
    }
    return new SourceTree(texts);
  }

  /** The same tree with one more file, or with this text in place of a file's. */
  with(path: string, text: string): SourceTree {
    return new SourceTree(new Map(this.#texts).set(path, text));
  }

  has(path: string): boolean {
    return this.#texts.has(path);
  }

  hasFolder(path: string): boolean {
    const prefix = `${path.replace(/\/$/, '')}/`;
    return [...this.#texts.keys()].some((other) => other.startsWith(prefix));
  }

  /** "" for a file that is not there. */
  text(path: string): string {
    return this.#texts.get(path) ?? '';
  }

  paths(pattern: RegExp): string[] {
    return [...this.#texts.keys()].filter((path) => pattern.test(path)).sort();
  }
}
