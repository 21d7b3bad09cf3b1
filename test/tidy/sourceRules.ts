// The rules that sources keep. Each takes the tree and gives a sentence for everything that breaks it.
import { basename, join } from 'node:path';
import { ERROR_CODES } from '@cloister/model/errors.ts';
import type { SourceTree } from './sourceTree.ts';

export type Rule = (tree: SourceTree) => string[];

/** From the ground up: a package may import from the floors below its own, and from nowhere else. */
const FLOORS: readonly (readonly string[])[] = [
  ['model'],
  ['kit'],
  ['store', 'scheduler', 'link', 'image', 'sandbox'],
  ['server', 'agent', 'client'],
  ['cli'],
  ['local'],
];
const MAX_LINES = 400;
const CODE = /^(packages|guest|bench|test)\/.*\.(ts|c|h)$/;
const COMMENTED = /^(packages|guest|bench|test|proto)\/.*\.(ts|c|h|sh|proto)$|(^|\/)Makefile$|^(bin|\.ci)\//;
const VAGUE = /^(utils?|common|helpers?|misc|managers?|types)$|(Utils?|Helpers?|Manager)$/;
/** Their names are other people's. */
const NAMED_ELSEWHERE = new Set(['proto/containerd/types.proto']);

interface Manifest {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
}

interface Import {
  readonly specifier: string;
  /** Loaded with the file itself, not when it is called for. */
  readonly isStatic: boolean;
}

/** Biome writes every import in one of these three ways. */
function importsOf(text: string): Import[] {
  const found = (pattern: RegExp, isStatic: boolean): Import[] =>
    [...text.matchAll(pattern)].map(([, specifier = '']) => ({ specifier, isStatic }));
  return [
    ...found(/^(?:import|export)\s[^;'"`]*\bfrom '([^'\n]+)';/gm, true),
    ...found(/^import '([^'\n]+)';/gm, true),
    ...found(/\bimport\('([^'\n]+)'\)/g, false),
  ];
}

/** The file of ours that an import names, or undefined: it is Node's, or somebody else's package. */
function fileOf(from: string, specifier: string): string | undefined {
  if (specifier.startsWith('.')) return join(from, '..', specifier);
  return specifier.startsWith('@cloister/') ? specifier.replace('@cloister/', 'packages/') : undefined;
}

const packageOf = (path: string): string | undefined => /^packages\/([^/]+)\//.exec(path)?.[1];
const packageName = (specifier: string): string => /^(@[^/]+\/)?[^/]+/.exec(specifier)?.[0] ?? specifier;
const floorOf = (name: string): number => FLOORS.findIndex((floor) => floor.includes(name));
const manifestOf = (tree: SourceTree, path: string): Manifest =>
  JSON.parse(tree.text(path) || '{}') as Manifest;

export const floors: Rule = (tree) => {
  const problems: string[] = [];
  const forTests = filesForTests(tree);
  for (const path of tree.paths(/^packages\/.*\.ts$/)) {
    const own = packageOf(path) ?? '';
    if (floorOf(own) < 0) problems.push(`${path}: the package ${own} is on no floor`);
    for (const { specifier } of importsOf(tree.text(path))) {
      const target = fileOf(path, specifier);
      if (target === undefined) continue;
      const other = packageOf(target);
      if (forTests.has(path) && target.startsWith('guest/test/')) continue; // how a guest is tried, from both its sides
      if (!tree.has(target)) problems.push(`${path}: there is no ${target}`);
      else if (other !== own && specifier.startsWith('.'))
        problems.push(`${path}: ${specifier} leaves the package`);
      else if (other === undefined || (other !== own && floorOf(other) >= floorOf(own)))
        problems.push(`${path}: ${own} may not import from ${other ?? target}`);
    }
  }
  return problems;
};

export const dependencies: Rule = (tree) => {
  const problems: string[] = [];
  const forTests = filesForTests(tree);
  const shared = manifestOf(tree, 'package.json').devDependencies ?? {};
  for (const manifestPath of tree.paths(/^packages\/[^/]+\/package\.json$/)) {
    const own = packageOf(manifestPath) ?? '';
    const sources = tree.paths(new RegExp(`^packages/${own}/.*\\.ts$`));
    const { dependencies: needed = {}, devDependencies: neededByTests = {} } = manifestOf(tree, manifestPath);
    const used = new Set<string>();
    for (const path of sources) {
      for (const { specifier } of importsOf(tree.text(path))) {
        const name = packageName(specifier);
        if (specifier.startsWith('.') || specifier.startsWith('node:') || name === `@cloister/${own}`)
          continue;
        used.add(name);
        const isDeclared =
          name in needed || (forTests.has(path) && (name in neededByTests || name in shared));
        if (!isDeclared) problems.push(`${path}: ${name} is not among the dependencies of ${own}`);
      }
    }
    if (sources.length === 0) continue; // a room that nobody has moved into yet
    for (const name of Object.keys({ ...needed, ...neededByTests }))
      if (!used.has(name)) problems.push(`${manifestPath}: nothing uses ${name}`);
  }
  return problems;
};

/** Tests, and what nobody but tests imports: all that cannot be reached from a file that is no test and is not imported. */
function filesForTests(tree: SourceTree): Set<string> {
  const sources = tree.paths(/^packages\/.*\.ts$/);
  const isTest = (path: string): boolean => path.endsWith('.test.ts');
  const targetsOf = (path: string): string[] =>
    importsOf(tree.text(path)).flatMap(({ specifier }) => fileOf(path, specifier) ?? []);
  const imported = new Set(sources.flatMap(targetsOf));
  const found = new Set(sources);
  const reach = (path: string): void => {
    if (isTest(path) || !found.delete(path)) return;
    for (const target of targetsOf(path)) reach(target);
  };
  for (const path of sources) if (!imported.has(path)) reach(path);
  return found;
}

/** Depth first, by what is loaded with a file; types count too: they make two files one thing to understand. */
export const cycles: Rule = (tree) => {
  const problems: string[] = [];
  const state = new Map<string, 'open' | 'done'>();
  const visit = (path: string, trail: readonly string[]): void => {
    if (state.get(path) === 'done') return;
    if (state.get(path) === 'open') {
      problems.push([...trail.slice(trail.indexOf(path)), path].join(' -> '));
      return;
    }
    state.set(path, 'open');
    for (const { specifier, isStatic } of importsOf(tree.text(path))) {
      const target = isStatic ? fileOf(path, specifier) : undefined;
      if (target !== undefined && tree.has(target)) visit(target, [...trail, path]);
    }
    state.set(path, 'done');
  };
  for (const path of tree.paths(/^(packages|guest|bench|test)\/.*\.ts$/)) visit(path, []);
  return problems;
};

export const sizes: Rule = (tree) =>
  tree.paths(CODE).flatMap((path) => {
    const lines = tree.text(path).replace(/\n$/, '').split('\n').length;
    return lines > MAX_LINES ? [`${path}: ${lines} lines; ${MAX_LINES} are the limit`] : [];
  });

export const heads: Rule = (tree) =>
  tree.paths(COMMENTED).flatMap((path) => {
    const [first, second = ''] = tree.text(path).split('\n');
    const line = first?.startsWith('#!') ? second : (first ?? '');
    return /^(\/\/|#|\/\*) ?\w/.test(line) && !/biome-ignore|^#include/.test(line)
      ? []
      : [`${path}: its first line does not say what it is for`];
  });

export const names: Rule = (tree) =>
  tree.paths(/./).flatMap((path) => {
    if (NAMED_ELSEWHERE.has(path)) return [];
    const vague = path.split('/').find((part) => VAGUE.test(part.replace(/\..*$/, '')));
    return vague === undefined ? [] : [`${path}: "${vague}" says nothing of what is in it`];
  });

export const exportsAreNamed: Rule = (tree) =>
  tree.paths(/\.ts$/).flatMap((path) => {
    const text = tree.text(path);
    return [
      ...(/^export default\b/m.test(text) ? [`${path}: has a default export`] : []),
      ...(basename(path) === 'index.ts' || /^export (type )?(\*|\{[^}]*\})[^;]* from '/m.test(text)
        ? [`${path}: passes on what is somewhere else`]
        : []),
    ];
  });

export const allTestsRun: Rule = (tree) =>
  tree
    .paths(/\.ts$/)
    .filter((path) =>
      /\b(test|it|describe|suite)\.(skip|only|todo)\b|\bt\.(skip|todo)\(/.test(tree.text(path)),
    )
    .map((path) => `${path}: has tests that do not run, or keep others from it`);

/** In two pieces each, or this file would break its own rule. */
const join2 = (first: string, second: string): string => first + second;
const FORBIDDEN: readonly { readonly pattern: RegExp; readonly what: string }[] = [
  {
    pattern: new RegExp(
      [
        join2('npm', 'js\\.(org|com)'),
        join2('yarn', 'pkg\\.com'),
        join2('(deb|ftp|security|snapshot)\\.', 'debian\\.org'),
        join2('py', 'pi\\.org'),
        join2('crates', '\\.io'),
        join2('proxy\\.', 'golang\\.org'),
      ].join('|'),
    ),
    what: "a package registry's host",
  },
  {
    pattern: new RegExp(`(?<![\\w.~:-])/(${join2('wo', 'rk')}|${join2('ro', 'ot')}|${join2('Us', 'ers')})/`),
    what: "a path of somebody's machine", // behind a colon: in the list of an image's users
  },
  {
    pattern: new RegExp(`\\b(${join2('TO', 'DO')}|${join2('FIX', 'ME')}|${join2('XX', 'X')})\\b`),
    what: 'unfinished work',
  },
];

export const words: Rule = (tree) =>
  tree.paths(/./).flatMap((path) =>
    FORBIDDEN.flatMap(({ pattern, what }) => {
      const line = tree
        .text(path)
        .split('\n')
        .findIndex((text) => pattern.test(text));
      return line < 0 ? [] : [`${path}:${line + 1}: names ${what}`];
    }),
  );

/** A lock file that names where packages came from cannot be used where they come from elsewhere. */
export const lockFile: Rule = (tree) =>
  [...tree.text('package-lock.json').matchAll(/"resolved": "([^"]*)"/g)]
    .filter(([, target = '']) => !tree.has(`${target}/package.json`))
    .map(([, target]) => `package-lock.json: resolves to ${target}`);

export const errorCodes: Rule = (tree) => {
  const table = 'packages/model/errors.ts';
  const sources = tree
    .paths(/^packages\/.*\.ts$/)
    .filter((path) => path !== table && !path.endsWith('.test.ts'));
  const text = sources.map((path) => tree.text(path)).join('\n');
  const inTable = [...tree.text(table).matchAll(/^ {2}'?([a-z.-]+)'?: \{/gm)].map(([, code = '']) => code);
  if (inTable.length !== Object.keys(ERROR_CODES).length)
    return [`${table}: is not laid out as this rule reads it`];
  return inTable
    .filter((code) => !text.includes(`'${code}'`) && !text.includes(`ERROR_CODES.${code}`))
    .map((code) => `${table}: nothing throws ${code}`);
};
