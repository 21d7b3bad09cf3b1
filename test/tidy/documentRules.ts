// The rules that documents keep: what they link to, name and tell their readers to type is there.
import { dirname, join } from 'node:path';
import { ALIASES, COMMANDS } from '@cloister/cli/commandList.ts';
import { parseCommandLine } from '@cloister/cli/parse.ts';
import type { Rule } from './sourceRules.ts';
import type { SourceTree } from './sourceTree.ts';

const DOCUMENT = /\.md$/;
const PATH = /^(?:packages|guest|docs|proto|bench|test|bin|\.ci)\/[\w./*-]*$/;
const FILE = /^[\w.-]+\.(?:ts|c|h|md|proto|sh)$/;

const exists = (tree: SourceTree, path: string): boolean => tree.has(path) || tree.hasFolder(path);

/** Links to files of ours; what is behind "#" is not looked at. */
export const links: Rule = (tree) =>
  tree.paths(DOCUMENT).flatMap((path) =>
    [...withoutBlocks(tree.text(path)).matchAll(/\]\(([^)\s]+)\)/g)]
      .map(([, target = '']) => target.replace(/#.*$/, ''))
      .filter((target) => target !== '' && !/^[a-z]+:/.test(target))
      .filter((target) => !exists(tree, join(dirname(path), target)))
      .map((target) => `${path}: links to ${target}, which is not there`),
  );

/**
 * Files and folders named in `backquotes`: paths from the root, and names of files, which must be beside a package's
 * own document, and somewhere at all for the others.
 */
export const paths: Rule = (tree) =>
  tree.paths(DOCUMENT).flatMap((path) =>
    [...withoutBlocks(tree.text(path)).matchAll(/`([^`\n]+)`/g)]
      .map(([, word = '']) => word)
      .filter(
        (word) => (PATH.test(word) && !isThere(tree, word)) || (FILE.test(word) && !isNear(tree, path, word)),
      )
      .map((word) => `${path}: names ${word}, which is not there`),
  );

/** With a star for whatever comes there: `packages/*`. */
function isThere(tree: SourceTree, word: string): boolean {
  if (!word.includes('*')) return exists(tree, word);
  const pattern = word.replace(/[.]/g, '\\.').replace(/\*+/g, '.*');
  return tree.paths(new RegExp(`^${pattern}`)).length > 0;
}

function isNear(tree: SourceTree, document: string, name: string): boolean {
  const folder = dirname(document);
  if (folder.startsWith('packages/')) return exists(tree, join(folder, name)) || tree.has(name);
  return tree.paths(new RegExp(`(^|/)${name.replaceAll('.', '\\.')}$`)).length > 0;
}

/** `make TARGET`, in sentences and in blocks. */
export const makeTargets: Rule = (tree) => {
  const targetsOf = (path: string): Set<string> =>
    new Set([...tree.text(path).matchAll(/^([a-z][a-z-]*):/gm)].map(([, target = '']) => target));
  const [root, guest] = [targetsOf('Makefile'), targetsOf('guest/Makefile')];
  return tree.paths(DOCUMENT).flatMap((path) =>
    [...tree.text(path).matchAll(/(?:`|^\s*)make ((?:-C guest )?)([a-z][a-z -]*)/gm)].flatMap(
      ([, inGuest, words = '']) =>
        words
          .trim()
          .split(/ +/)
          .filter((target) => !(inGuest ? guest : root).has(target))
          .map((target) => `${path}: says "make ${target}", and the Makefile has no such target`),
    ),
  );
};

/** Lines of `sh` blocks that call the CLI, tried as far as the parsing of their words. */
export async function commandLines(tree: SourceTree): Promise<string[]> {
  const problems: string[] = [];
  for (const path of tree.paths(DOCUMENT)) {
    for (const [, block = ''] of tree.text(path).matchAll(/^```sh\n([\s\S]*?)^```$/gm)) {
      for (const line of block.split('\n').filter((text) => text.startsWith('bin/cloister '))) {
        const why = await whyRefused(shellWords(line).slice(1));
        if (why !== undefined) problems.push(`${path}: "${line}": ${why}`);
      }
    }
  }
  return problems;
}

async function whyRefused([name = '', ...words]: readonly string[]): Promise<string | undefined> {
  const listing = COMMANDS[ALIASES[name] ?? name];
  if (!listing) return `there is no command ${name}`;
  try {
    parseCommandLine(await listing.load(), words);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** The words of a simple command: quotes are taken off, and what a shell would do with the rest is left out. */
function shellWords(line: string): string[] {
  const words: string[] = [];
  for (const [word, single, double] of line.matchAll(/'([^']*)'|"([^"]*)"|[^\s'"]+/g)) {
    if (/^(#|[|;>&<]|2>)/.test(word)) break;
    words.push(single ?? double ?? word);
  }
  return words;
}

/** Blocks of code: what is in them is not Markdown. */
function withoutBlocks(text: string): string {
  return text.replace(/^```[\s\S]*?^```$/gm, '');
}
