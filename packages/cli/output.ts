// Writing to a standard stream: byte for byte, one write at a time, each awaited.
//
// Not process.stdout: it makes the descriptor non-blocking for everyone who shares it, and keeps what it could not
// write in memory. Here a slow reader makes the write wait, and whoever awaits it stops reading from the network.
import { write } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { BrokenPipe } from './failure.ts';

const RETRY_MS = 5;

export class Output {
  readonly #descriptor: number;
  #last: Promise<void> = Promise.resolve();

  constructor(descriptor: number) {
    this.#descriptor = descriptor;
  }

  /** Resolves when the bytes are written. Throws BrokenPipe when the reader is gone. */
  write(data: string | Buffer): Promise<void> {
    const bytes = typeof data === 'string' ? Buffer.from(data) : data;
    const written = this.#last.then(() => this.#writeAll(bytes));
    this.#last = written.catch(() => {});
    return written;
  }

  async #writeAll(bytes: Buffer): Promise<void> {
    for (let offset = 0; offset < bytes.length; ) {
      try {
        offset += await writeSome(this.#descriptor, bytes, offset);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        // EIO: the terminal was closed.
        if (code === 'EPIPE' || code === 'EIO') throw new BrokenPipe('the reader is gone', { cause: error });
        if (code !== 'EAGAIN' && code !== 'EINTR') throw error;
        await delay(RETRY_MS); // somebody else made the descriptor non-blocking; there is no event to wait for
      }
    }
  }
}

function writeSome(descriptor: number, bytes: Buffer, offset: number): Promise<number> {
  return new Promise((resolve, reject) => {
    write(descriptor, bytes, offset, bytes.length - offset, null, (error, count) =>
      error ? reject(error) : resolve(count),
    );
  });
}
