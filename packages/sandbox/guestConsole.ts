// The last words of a guest's kernel. Hostile text: the end of it is kept, in bounded memory, and made printable.
import type { Duplex } from 'node:stream';

const KEPT_BYTES = 16_384;
const REASON_CHARACTERS = 600;

export class GuestConsole {
  readonly #stream: Duplex;
  #kept: Buffer = Buffer.alloc(0);
  readonly closed: Promise<void>;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on('data', (chunk: Buffer) => {
      const joined = Buffer.concat([this.#kept, chunk.subarray(-KEPT_BYTES)]);
      this.#kept = Buffer.from(joined.subarray(-KEPT_BYTES));
    });
    this.closed = new Promise((resolve) => stream.once('close', () => resolve()));
    stream.on('error', () => {}); // the machine ended: `close` follows
  }

  /** The kernel's panic and what follows it, in one line, or undefined when it did not panic. */
  panic(): string | undefined {
    const text = this.#printable();
    const at = text.lastIndexOf('Kernel panic');
    return at < 0 ? undefined : text.slice(at, at + REASON_CHARACTERS);
  }

  /** The end of what it printed, in one line. */
  lastWords(): string {
    return this.#printable().slice(-REASON_CHARACTERS).trim() || 'it printed nothing';
  }

  close(): void {
    this.#stream.destroy();
  }

  #printable(): string {
    return this.#kept.toString('latin1').replaceAll(/[^ -~]+/g, ' ');
  }
}
