// Sockets that a VMM inherits.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { connectToSocket, InheritedSocket } from './inheritedSocket.ts';

let folder: string;
before(() => {
  // Deeper than a unix socket's address can say.
  folder = mkdtempSync(join(tmpdir(), 'inherited-socket-test-'));
  mkdirSync(join(folder, 'a'.repeat(100)));
});
after(() => rmSync(folder, { recursive: true }));

/** A program that serves one connection after another on descriptor 3, as a VMM does. */
const SERVER = `require('node:net').createServer((socket) => socket.pipe(socket)).listen({ fd: 3 })`;

test('a program that inherits a socket serves it, and its end is told from its not having come yet', async () => {
  const path = join(folder, 'a'.repeat(100), 'echo');
  const early = connectToSocket(path, 5_000);
  const socket = await InheritedSocket.listen(path);
  const child = spawn(process.execPath, ['-e', SERVER], {
    stdio: ['ignore', 'inherit', 'inherit', socket.fd],
  });
  await socket.publish();
  for (const connection of [await early, await connectToSocket(path, 5_000)]) {
    connection.write('hello');
    const [answer] = (await once(connection, 'data')) as [Buffer];
    assert.equal(answer.toString(), 'hello');
    connection.destroy();
  }
  child.kill('SIGKILL');
  await once(child, 'exit');
  await assert.rejects(connectToSocket(path, 5_000), { code: 'sandbox.vmm-died' });
  assert.deepEqual(readdirSync(join(folder, 'a'.repeat(100))), ['echo']);
});

test('a socket that never comes is an error at the limit, and waiting can be given up', async () => {
  const path = join(folder, 'never');
  await assert.rejects(connectToSocket(path, 30), { code: 'sandbox.boot-timeout' });
  await assert.rejects(connectToSocket(path, 60_000, AbortSignal.timeout(20)));
});

test('a socket that was never published leaves no file', async () => {
  const socket = await InheritedSocket.listen(join(folder, 'given-up'));
  await socket.close();
  assert.equal(
    readdirSync(folder).some((name) => name.startsWith('given-up')),
    false,
  );
});
