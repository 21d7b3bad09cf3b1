// Standard input of one process in a guest: sent as far as the guest allows, in order, and whoever writes waits while
// the process does not read. At most what one writer handed over is in memory.
import { CloisterError } from '@cloister/model/errors.ts';

export interface StdinTarget {
  send(offset: number, bytes: Buffer): Promise<void>;
  sendEof(offset: number): void;
}

export class StdinPipe {
  readonly #target: StdinTarget;
  #offset = 0;
  #limit = 0;
  #closed = false;
  #eof = false;
  #moved = Promise.withResolvers<void>();
  #last: Promise<void> = Promise.resolve();

  constructor(target: StdinTarget) {
    this.#target = target;
  }

  /** After a resume: what the guest says it has. */
  resume(consumed: number, limit: number): void {
    this.#offset = Math.max(this.#offset, consumed);
    this.allow(limit);
  }

  /** The guest takes bytes up to this offset. It never takes that back. */
  allow(limit: number): void {
    if (limit <= this.#limit) return;
    this.#limit = limit;
    this.#wake();
  }

  /** Resolves when all was handed to the guest. Throws `state.wrong` when input has ended. */
  async write(bytes: Buffer): Promise<void> {
    const mine = this.#last.then(() => this.#writeAll(bytes));
    this.#last = mine.catch(() => {});
    await mine;
  }

  /** Behind what was written. */
  end(): void {
    this.#last = this.#last.then(() => {
      if (this.#closed || this.#eof) return;
      this.#eof = true;
      this.#target.sendEof(this.#offset);
    });
  }

  /** The process is gone: writers that wait are told. */
  close(): void {
    this.#closed = true;
    this.#wake();
  }

  async #writeAll(bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      while (!this.#closed && this.#limit <= this.#offset) await this.#moved.promise;
      if (this.#closed || this.#eof) throw new CloisterError('state.wrong', 'Standard input is at its end.');
      const part = bytes.subarray(at, at + this.#limit - this.#offset);
      await this.#target.send(this.#offset, part);
      this.#offset += part.length;
      at += part.length;
    }
  }

  #wake(): void {
    this.#moved.resolve();
    this.#moved = Promise.withResolvers<void>();
  }
}
