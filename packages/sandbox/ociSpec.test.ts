// What an image and a job say together, by Docker's rules.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { ImageConfig } from '@cloister/model/image.ts';
import type { JobSpec } from '@cloister/model/job.ts';
import { commandLine, execRequest, signalNumber, startRequest, workloadEnv } from './ociSpec.ts';
import type { SandboxRequest } from './sandbox.ts';

const image: ImageConfig = {
  entrypoint: ['/entry', '-e'],
  cmd: ['image', 'words'],
  env: ['PATH=/image/bin', 'COLOUR=blue', 'EMPTY='],
  user: 'web:www',
  workingDir: 'srv',
  stopSignal: 'SIGQUIT',
  volumes: ['/data'],
};

const request = (spec: Partial<JobSpec>, config: Partial<ImageConfig> = {}): SandboxRequest => ({
  id: 'a',
  image: { digest: '', blockPath: '', config: { ...image, ...config } },
  spec: { env: {}, tty: false, stdin: false, ...spec } as JobSpec,
  hostname: 'box',
  timeline: {},
});

// biome-ignore lint/suspicious/noExplicitAny: a test looks into JSON
const start = (spec: Partial<JobSpec>, config?: Partial<ImageConfig>): any => {
  // biome-ignore lint/suspicious/noExplicitAny: as above
  const made = startRequest(request(spec, config)) as any;
  return { ...made, config: JSON.parse(made.config) };
};

describe('the command line', () => {
  const cases: [string, string[] | undefined, string[] | undefined, string[]][] = [
    ["is the image's without wishes", undefined, undefined, ['/entry', '-e', 'image', 'words']],
    ["has the job's command in place of Cmd", undefined, ['mine'], ['/entry', '-e', 'mine']],
    ['has no Cmd with another entrypoint', ['/other'], undefined, ['/other']],
    ["is the job's alone with both", ['/other'], ['mine'], ['/other', 'mine']],
    ['has no entrypoint when that is empty', [''], ['mine'], ['mine']],
  ];
  for (const [what, entrypoint, command, expected] of cases) {
    test(what, () => assert.deepEqual(commandLine(image, entrypoint, command), expected));
  }
  test('is refused when nothing is left of it', () => {
    assert.throws(() => commandLine({ ...image, entrypoint: [], cmd: [] }, undefined, undefined), {
      code: 'sandbox.command-not-found',
    });
  });
});

describe('the environment', () => {
  test("is the image's, then the job's, each name once", () => {
    assert.deepEqual(workloadEnv(image, { COLOUR: 'red', MORE: 'a=b' }, 'box', false), [
      'PATH=/image/bin',
      'HOSTNAME=box',
      'COLOUR=red',
      'EMPTY=',
      'MORE=a=b',
    ]);
  });
  test('has a PATH when the image has none, and TERM with a terminal', () => {
    const env = workloadEnv({ ...image, env: [] }, {}, 'box', true);
    assert.ok(env[0]?.startsWith('PATH=/usr/local/sbin:'));
    assert.ok(env.includes('TERM=xterm'));
  });
  test('leaves the home to the guest, unless somebody set one', () => {
    assert.ok(start({}).config.process.env.includes('HOME=@HOME@'));
    assert.equal(start({}).hasHome, false);
    const homed = start({ env: { HOME: '/somewhere' } });
    assert.equal(homed.hasHome, true);
    assert.deepEqual(
      homed.config.process.env.filter((entry: string) => entry.startsWith('HOME')),
      ['HOME=/somewhere'],
    );
  });
});

describe('the workload', () => {
  test("runs as the image's user in its folder, or as the job wishes", () => {
    assert.deepEqual(
      [start({}).user, start({}).workingDir, start({}).config.process.cwd],
      ['web:www', '/srv', '/srv'],
    );
    const wished = start({ user: '5', workingDir: '/tmp' });
    assert.deepEqual([wished.user, wished.config.process.cwd], ['5', '/tmp']);
  });
  test('has every capability, and nothing masked, read-only or filtered', () => {
    const { process, linux, root } = start({}).config;
    for (const set of ['bounding', 'effective', 'permitted', 'inheritable'])
      assert.equal(process.capabilities[set].length, 41);
    assert.equal(root.readonly, false);
    assert.deepEqual(Object.keys(linux).sort(), ['cgroupsPath', 'namespaces']);
  });
  test("cannot have the guest's placeholders put in by its words", () => {
    const made = startRequest(request({ command: ['"user":"@USER@"', 'HOME=@HOME@ '] })) as {
      config: string;
    };
    assert.equal(made.config.split('"user":"@USER@"').length - 1, 1);
    assert.equal(made.config.split('"HOME=@HOME@"').length - 1, 1);
  });
  test('is found by its PATH', () => {
    assert.deepEqual([start({}).argv0, start({}).path], ['/entry', '/image/bin']);
  });
});

test("an exec has the workload's user, folder and environment, and its own on top", () => {
  const spec = { command: ['id'], env: { COLOUR: 'green' }, tty: true, stdin: true, rows: 3, columns: 4 };
  const made = execRequest(request({ env: { JOB: '1' } }), spec) as Record<string, unknown>;
  const process = JSON.parse(String(made['process']));
  assert.deepEqual(process.args, ['id']);
  assert.ok(['COLOUR=green', 'JOB=1', 'TERM=xterm'].every((entry) => process.env.includes(entry)));
  assert.deepEqual([made['user'], made['workingDir'], made['rows']], ['web:www', '/srv', 3]);
  const other = execRequest(request({}), {
    ...spec,
    user: 'root',
    workingDir: '/',
    tty: false,
  }) as typeof made;
  assert.deepEqual([other['user'], other['workingDir']], ['root', '/']);
});

test('stop signals are named in every way that Docker takes, and SIGTERM otherwise', () => {
  const cases = {
    '': 15,
    SIGQUIT: 3,
    usr1: 10,
    '9': 9,
    'SIGRTMIN+3': 37,
    'RTMAX-1': 63,
    nonsense: 15,
    '99': 15,
    'RTMIN+60': 15,
  };
  for (const [text, number] of Object.entries(cases)) assert.equal(signalNumber(text), number, text);
});
