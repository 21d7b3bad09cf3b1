// One line on the terminal that says what is being waited for, and leaves no trace.
import type { Context } from './context.ts';
import { terminalSize } from './context.ts';
import { printable } from './format.ts';
import { truncate } from './table.ts';

const FRAMES = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const EVERY_MS = 100;

export class StatusLine {
  readonly #context: Context;
  #text = '';
  #frame = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(context: Context) {
    this.#context = context;
  }

  /** Shows the text from now on; nothing when standard error is no terminal, or the output is for a program. */
  set(text: string): void {
    this.#text = printable(text);
    if (!this.#context.errIsTerminal || this.#context.json || this.#timer) return;
    this.#timer = setInterval(() => void this.#draw(), EVERY_MS);
    void this.#draw();
  }

  async clear(): Promise<void> {
    if (!this.#timer) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    await this.#context.err.write('\r\x1b[K');
  }

  #draw(): Promise<void> {
    this.#frame = (this.#frame + 1) % FRAMES.length;
    const text = truncate(`${FRAMES[this.#frame]} ${this.#text}`, terminalSize().columns - 1);
    return this.#context.err.write(`\r${text}\x1b[K`).catch(() => {});
  }
}
