// How the programs of this package speak to whoever waits for them: a line a step, with how long it took.
const isTerminal = process.stdout.isTTY === true && process.env['NO_COLOR'] === undefined;

const paint = (code: string, text: string): string => (isTerminal ? `\u001b[${code}m${text}\u001b[0m` : text);
export const bold = (text: string): string => paint('1', text);
export const dim = (text: string): string => paint('2', text);
export const green = (text: string): string => paint('32', text);

/** Says what is being done, and when the next thing begins, how long that took. */
export class Steps {
  readonly #startedMs = performance.now();
  #current: { readonly what: string; readonly sinceMs: number } | undefined;

  begin(what: string): void {
    this.end();
    this.#current = { what, sinceMs: performance.now() };
    if (isTerminal) process.stdout.write(`  ${dim('…')} ${what}`);
  }

  end(): void {
    if (!this.#current) return;
    const { what, sinceMs } = this.#current;
    const took = `${((performance.now() - sinceMs) / 1000).toFixed(1)} s`;
    process.stdout.write(`${isTerminal ? '\r\u001b[K' : ''}  ${green('✓')} ${what} ${dim(took)}\n`);
    this.#current = undefined;
  }

  /** Seconds since the first step. */
  get tookSeconds(): number {
    return (performance.now() - this.#startedMs) / 1000;
  }
}
