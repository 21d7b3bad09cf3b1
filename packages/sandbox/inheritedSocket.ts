// Unix sockets that the agent makes and a VMM inherits, already listening. The VMM then needs no folder to write in and
// no right to make sockets; and since nothing in the folder is the VMM's, no trap can wait there for the agent to
// connect to.
import { renameSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { basename, dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloisterError } from '@cloister/model/errors.ts';

const RETRY_EVERY_MS = 5;

/** A socket that listens at `path` once it is published, and until its last descriptor is closed. */
export class InheritedSocket {
  readonly #server: Server;
  readonly #folder: FileHandle;
  readonly #name: string;
  readonly fd: number;

  private constructor(server: Server, folder: FileHandle, name: string, fd: number) {
    this.#server = server;
    this.#folder = folder;
    this.#name = name;
    this.fd = fd;
  }

  static async listen(path: string): Promise<InheritedSocket> {
    const folder = await open(dirname(path), 'r');
    // Nobody is to be accepted here: nobody knows this name, and `publish` stops listening on our side first thing.
    const server = createServer((socket) => socket.destroy());
    try {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      server.once('error', reject);
      server.listen(shortPath(folder, `${basename(path)}.new`), resolve);
      await promise;
      return new InheritedSocket(server, folder, basename(path), descriptorOf(server));
    } catch (error) {
      server.close();
      await folder.close();
      throw error;
    }
  }

  /** Call when the VMM's descriptor has been inherited. Gives the socket its name and lets go of it. */
  async publish(): Promise<void> {
    // Under its first name the server would unlink it on closing.
    renameSync(shortPath(this.#folder, `${this.#name}.new`), shortPath(this.#folder, this.#name));
    await this.close();
  }

  async close(): Promise<void> {
    if (this.#server.listening) await new Promise<void>((resolve) => this.#server.close(() => resolve()));
    await this.#folder.close();
  }
}

/**
 * Connects to a published socket; waits for it to be published. Rejects with `sandbox.vmm-died` when nobody listens any
 * more, with `sandbox.boot-timeout` after `timeoutMs`.
 */
export async function connectToSocket(
  path: string,
  timeoutMs: number,
  signal?: AbortSignal,
): Promise<Socket> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    signal?.throwIfAborted();
    try {
      return await connectOnce(path);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ECONNREFUSED')
        throw new CloisterError('sandbox.vmm-died', 'The VMM has ended: its socket is closed.', {
          cause: error,
        });
      if (code !== 'ENOENT' && code !== 'EAGAIN') throw error;
      if (performance.now() >= deadline) {
        throw new CloisterError('sandbox.boot-timeout', `The VMM offered no socket within ${timeoutMs} ms.`, {
          cause: error,
        });
      }
    }
    await delay(RETRY_EVERY_MS, undefined, signal ? { signal } : {});
  }
}

async function connectOnce(path: string): Promise<Socket> {
  const folder = await open(dirname(path), 'r');
  try {
    const socket = createConnection(shortPath(folder, basename(path)));
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    socket.once('connect', resolve);
    socket.once('error', reject);
    await promise;
    socket.off('error', reject);
    return socket;
  } finally {
    await folder.close();
  }
}

/** A unix socket's address holds 107 bytes; a state folder may lie deeper than that. */
function shortPath(folder: FileHandle, name: string): string {
  return `/proc/self/fd/${folder.fd}/${name}`;
}

/** Node gives servers no public way to say it, and has had this one since its first versions. */
function descriptorOf(server: Server): number {
  const fd = (server as unknown as { _handle?: { fd?: number } })._handle?.fd;
  if (fd === undefined || fd < 0)
    throw new CloisterError('internal', 'This Node does not tell the descriptor of a server.');
  return fd;
}
