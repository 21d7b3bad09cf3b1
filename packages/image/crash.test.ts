// An agent that is killed in the middle: no mount stays, and what was fetched is not fetched again.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '@cloister/kit/clock.ts';
import { poll } from '@cloister/kit/wait.ts';
import { FakeRegistry } from './fakeRegistry.ts';
import { buildImage } from './testImage.ts';
import { TestNode } from './testNode.ts';

async function waitFor<Value>(check: () => Promise<Value | undefined> | Value | undefined): Promise<Value> {
  const makeError = (): Error => new Error('it did not happen in 10 s');
  return await poll(check, { clock: systemClock, everyMs: 20, timeoutMs: 10_000, makeError });
}

/** Runs a program that imports `module`, until it prints a line; then kills it. Gives the line. */
async function runUntilLineAndKill(
  module: string,
  program: string,
  args: readonly string[],
): Promise<string> {
  const text = `const library = await import(process.argv[1]); const args = process.argv.slice(2); ${program}`;
  const agent = spawn(
    process.execPath,
    ['--input-type=module', '--eval', text, join(import.meta.dirname, module), ...args],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  const [line] = (await once(agent.stdout, 'data')) as [Buffer];
  agent.kill('SIGKILL');
  await once(agent, 'exit');
  return line.toString().trim();
}

test('a pull goes on after the agent was killed where its layer was', async () => {
  await using node = await TestNode.start();
  await using fake = node.trust(await FakeRegistry.start());
  const image = buildImage({ files: [{ path: 'file', content: randomBytes(2_000_000) }] });
  const layer = image.layers[0]!;
  const reference = fake.serve(image);
  const folder = join(node.folder, 'store');
  fake.handler = (request, response, part) => {
    if (part !== layer || request.headers.range) return false;
    response.writeHead(200);
    response.write(layer.bytes.subarray(0, 1_000_000)); // and then nothing
    return true;
  };
  const program = `
    const containerd = { socketPath: args[0], rootFolder: args[1] };
    const insecureRegistries = [args[3].split('/')[0]];
    const store = await library.ImageStore.open({ containerd, folder: args[2], minFreeBytes: 0, insecureRegistries });
    await store.pull(args[3], { onProgress: ({ fetchedBytes }) => fetchedBytes > 500_000 && console.log(fetchedBytes) });
  `;
  const { socketPath, rootFolder } = node.containerd;
  const reached = Number(
    await runUntilLineAndKill('images.ts', program, [socketPath, rootFolder, folder, reference]),
  );
  assert.equal((await node.held()).ingestions.length, 1);
  fake.requests.length = 0;
  const store = await node.store({ folder });
  await store.pull(reference);
  const ranges = fake.requests.map(({ headers }) => headers.range).filter((range) => range !== undefined);
  assert.equal(ranges.length, 1);
  assert.ok(Number(/^bytes=(\d+)-$/.exec(ranges[0] ?? '')?.[1]) >= reached, String(ranges[0]));
});

test('a mount does not outlive the agent that made it', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-mounts-'));
  try {
    for (const name of ['base/1/fs', 'base/2/fs', 'tree'])
      await mkdir(join(folder, name), { recursive: true });
    const program = `
      const mounts = await library.PrivateMounts.open();
      await mounts.mountOverlay(args[0] + '/base', ['2/fs', '1/fs'], args[0] + '/tree');
      const { stdout } = await mounts.runUnchecked('cat', ['/proc/self/mountinfo'], { timeoutMs: 5000 });
      console.log(JSON.stringify({ isMounted: stdout.includes(args[0] + '/tree'), holder: mounts.holderPid }));
      setInterval(() => {}, 1000);
    `;
    const line = await runUntilLineAndKill('privateMount.ts', program, [folder]);
    const { isMounted, holder } = JSON.parse(line) as { isMounted: boolean; holder: number };
    assert.ok(isMounted);
    await waitFor(() => (existsSync(`/proc/${holder}/exe`) ? undefined : true));
    for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
      const mountinfo = await readFile(`/proc/${pid}/mountinfo`, 'utf8').catch(() => '');
      assert.ok(!mountinfo.includes(folder), `pid ${pid} still sees the mount`);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});
