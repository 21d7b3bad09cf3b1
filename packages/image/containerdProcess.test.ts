// containerd as a process: found again, replaced when it hangs, gone when it is stopped.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ContainerdProcess } from './containerdProcess.ts';

async function temporaryFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-containerd-'));
  t.after(async () => await rm(folder, { recursive: true }));
  return folder;
}

test('an agent that is killed leaves containerd running, and the next one adopts it', async (t) => {
  const folder = await temporaryFolder(t);
  const program = `
    const { ContainerdProcess } = await import(process.argv[1]);
    console.log((await ContainerdProcess.open({ folder: process.argv[2] })).pid);
    setInterval(() => {}, 1000);
  `;
  const module = join(import.meta.dirname, 'containerdProcess.ts');
  const agent = spawn(process.execPath, ['--input-type=module', '--eval', program, module, folder], {
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true, // a group of its own, to end as a terminal or a supervisor would
  });
  const [line] = (await once(agent.stdout, 'data')) as [Buffer];
  process.kill(-(agent.pid ?? Number.NaN), 'SIGKILL');
  await once(agent, 'exit');
  await using adopted = await ContainerdProcess.open({ folder });
  assert.equal(adopted.pid, Number(line.toString()));
});

test('a containerd that hangs is replaced', async (t) => {
  const folder = await temporaryFolder(t);
  const first = await ContainerdProcess.open({ folder });
  process.kill(first.pid, 'SIGSTOP');
  await using second = await ContainerdProcess.open({ folder });
  assert.notEqual(second.pid, first.pid);
  assert.ok(!existsSync(`/proc/${first.pid}/exe`));
});

test('a socket that nobody serves any more is in nobody’s way', async (t) => {
  const folder = await temporaryFolder(t);
  const first = await ContainerdProcess.open({ folder });
  process.kill(first.pid, 'SIGKILL');
  await using second = await ContainerdProcess.open({ folder });
  assert.notEqual(second.pid, first.pid);
});

test('stopping it is the end of the process and of its socket, and it listens nowhere else', async (t) => {
  const folder = await temporaryFolder(t);
  const containerd = await ContainerdProcess.open({ folder });
  t.after(() => containerd.stop()); // also when it does not stop as it should
  const sockets = (await readFile(`/proc/${containerd.pid}/net/unix`, 'utf8'))
    .split('\n')
    .filter((line) => line.includes(folder) && line.includes(' 00010000 ')); // those that listen, not their connections
  assert.deepEqual(sockets.map((line) => line.split('/').at(-1)).sort(), [
    'containerd.sock',
    'containerd.sock.ttrpc',
  ]);
  const config = await readFile(join(folder, 'config.toml'), 'utf8');
  assert.match(config, /tcp_address = ""/);
  await containerd.stop();
  await containerd.stop();
  assert.ok(!existsSync(`/proc/${containerd.pid}/exe`));
  assert.ok(!existsSync(containerd.socketPath));
});

test('a containerd that cannot start says where to look', async (t) => {
  const folder = await temporaryFolder(t);
  await assert.rejects(ContainerdProcess.open({ folder, command: '/nonexistent' }), { code: 'unavailable' });
  await writeFile(join(folder, 'state'), 'in the way');
  await assert.rejects(ContainerdProcess.open({ folder }), {
    code: 'unavailable',
    message: /see .*containerd\.log/,
  });
});
