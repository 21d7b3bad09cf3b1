// The repository looks after itself: its floors, its names, its documents. Every rule is tried on the tree as it is,
// and on the tree with something in it that breaks the rule.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { commandLines, links, makeTargets, paths } from './tidy/documentRules.ts';
import * as sources from './tidy/sourceRules.ts';
import { ROOT, SourceTree } from './tidy/sourceTree.ts';

const tree = SourceTree.read(ROOT);
const KIT = 'packages/kit/broken.ts';

interface Case {
  readonly sentence: string;
  readonly rule: (tree: SourceTree) => string[] | Promise<string[]>;
  /** Files that break it, each alone. */
  readonly broken: readonly (readonly [path: string, text: string])[];
}

const CASES: readonly Case[] = [
  {
    sentence: 'a package imports only from the floors below it, and only what is there',
    rule: sources.floors,
    broken: [
      [KIT, "import { keys } from '@cloister/server/keys.ts';\n"],
      [KIT, "import { keys } from '../server/keys.ts';\n"],
      [KIT, "import type { Store } from '@cloister/kit/nowhere.ts';\n"],
      ['packages/store/broken.ts', "import {\n  plan,\n} from '@cloister/scheduler/plan.ts';\n"],
      ['packages/cellar/broken.ts', '// A room on no floor.\n'],
    ],
  },
  {
    sentence: 'what a package imports is declared, and what is declared is used',
    rule: sources.dependencies,
    broken: [
      [KIT, "import { WebSocket } from 'ws';\n"],
      [KIT, "import fc from 'fast-check';\n"],
      ['packages/model/package.json', '{"dependencies":{"typebox":"1","ws":"8"}}'],
    ],
  },
  {
    sentence: 'no file needs itself to be loaded',
    rule: sources.cycles,
    broken: [['packages/kit/clock.ts', "import { poll } from './wait.ts';\n"]],
  },
  {
    sentence: 'no source is longer than 400 lines',
    rule: sources.sizes,
    broken: [[KIT, '// A line.\n'.repeat(401)]],
  },
  {
    sentence: 'every source says in its first line what it is for',
    rule: sources.heads,
    broken: [
      [KIT, "import { join } from 'node:path';\n"],
      ['guest/init/broken.c', '#include <errno.h>\n'],
      ['bin/broken', '#!/bin/sh\nset -eu\n'],
    ],
  },
  {
    sentence: 'no file or folder has a name that says nothing',
    rule: sources.names,
    broken: [
      ['packages/kit/utils.ts', ''],
      ['packages/common/log.ts', ''],
      ['packages/image/layerManager.ts', ''],
    ],
  },
  {
    sentence: 'everything is exported by its name, and imported from where it is',
    rule: sources.exportsAreNamed,
    broken: [
      [KIT, 'export default 1;\n'],
      [KIT, "export * from './clock.ts';\n"],
      [KIT, "export type { Clock } from './clock.ts';\n"],
      ['packages/kit/index.ts', ''],
    ],
  },
  {
    sentence: 'every test runs',
    rule: sources.allTestsRun,
    broken: ['skip', 'only', 'todo'].map((word) => [KIT, `test.${word}('a sentence', () => {});\n`] as const),
  },
  {
    sentence: 'no file names the host of a package registry, the path of a machine, or work that was left',
    rule: sources.words,
    broken: ['deb.debian' + '.org', '/wo' + 'rk/main', 'TO' + 'DO'].map(
      (word) => ['README.md', `See ${word}.\n`] as const,
    ),
  },
  {
    sentence: 'the lock file does not say where packages come from',
    rule: sources.lockFile,
    broken: [['package-lock.json', '"resolved": "https://packages.example/ws.tgz"']],
  },
  {
    sentence: 'every error code is thrown by something',
    rule: sources.errorCodes,
    broken: [
      [
        'packages/model/errors.ts',
        tree.text('packages/model/errors.ts').replace("'auth.missing': {", "'auth.absent': {"),
      ],
    ],
  },
  {
    sentence: 'every link of a document leads to a file',
    rule: links,
    broken: [['docs/broken.md', 'See [the map](../MAP.md).\n']],
  },
  {
    sentence: 'every file that a document names is there',
    rule: paths,
    broken: [
      ['docs/broken.md', 'See `packages/kit/nowhere.ts`.\n'],
      ['docs/broken.md', 'See `nowhere.ts`.\n'],
      ['packages/kit/README.md', '| `plan.ts` | is in another package |\n'],
    ],
  },
  {
    sentence: 'every make target that a document names is in the Makefile',
    rule: makeTargets,
    broken: [
      ['docs/broken.md', 'Type `make coffee`.\n'],
      ['docs/broken.md', '```sh\nmake test coffee\n```\n'],
    ],
  },
  {
    sentence: 'every command line of a document is one that the CLI understands',
    rule: commandLines,
    broken: [
      ['docs/broken.md', '```sh\nbin/cloister runn x\n```\n'],
      ['docs/broken.md', '```sh\nbin/cloister ps --al\n```\n'],
      ['docs/broken.md', '```sh\nbin/cloister run\n```\n'],
    ],
  },
];

for (const { sentence, rule, broken } of CASES) {
  test(sentence, async () => {
    const problems = await rule(tree);
    for (const [path, text] of broken) {
      const more = (await rule(tree.with(path, text))).filter((problem) => !problems.includes(problem));
      assert.notDeepEqual(more, [], `the rule lets this pass:\n${path}: ${text.slice(0, 200)}`);
    }
    assert.deepEqual(problems, []);
  });
}
