// How the programs of this package speak to whoever waits for them: a line a step, with how long it took; and how they
// end: in order, also when they are interrupted.
import { describeError } from '@cloister/model/errors.ts';

const isTerminal = process.stdout.isTTY === true;
const isColoured = isTerminal && !process.env['NO_COLOR'];
const FRAMES = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const FRAME_MS = 100;
/** As shells count signals that end a program. */
const EXIT_CODES = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;

const paint = (code: string, text: string): string => (isColoured ? `\x1b[${code}m${text}\x1b[0m` : text);
export const bold = (text: string): string => paint('1', text);
export const dim = (text: string): string => paint('2', text);
export const green = (text: string): string => paint('32', text);
export const red = (text: string): string => paint('31', text);
export const cyan = (text: string): string => paint('36', text);

export const say = (text = ''): void => void process.stdout.write(`${text}\n`);

/** Says what is being done, and when the next thing begins, how long that took. */
export class Steps {
  readonly #startedMs = performance.now();
  #current: { readonly what: string; readonly sinceMs: number; readonly timer?: NodeJS.Timeout } | undefined;

  begin(what: string): void {
    this.end();
    const sinceMs = performance.now();
    if (!isTerminal) {
      this.#current = { what, sinceMs };
      return;
    }
    let frame = 0;
    const draw = (): void => {
      frame = (frame + 1) % FRAMES.length;
      process.stdout.write(`\r  ${cyan(FRAMES[frame] ?? '')} ${what} ${dim(elapsed(sinceMs))}\x1b[K`);
    };
    draw();
    this.#current = { what, sinceMs, timer: setInterval(draw, FRAME_MS).unref() };
  }

  end(): void {
    this.#finish(green('✔'));
  }

  /** The step that was begun did not work. */
  fail(): void {
    this.#finish(red('✘'));
  }

  /** Since the first step, as "3.1 s". */
  get took(): string {
    return elapsed(this.#startedMs);
  }

  #finish(mark: string): void {
    if (!this.#current) return;
    const { what, sinceMs, timer } = this.#current;
    clearInterval(timer);
    process.stdout.write(
      `${isTerminal ? '\r\x1b[K' : ''}  ${mark} ${what.padEnd(28)} ${dim(elapsed(sinceMs).padStart(7))}\n`,
    );
    this.#current = undefined;
  }
}

const elapsed = (sinceMs: number): string => `${((performance.now() - sinceMs) / 1000).toFixed(1)} s`;

/**
 * Runs `main` to its end. Ctrl-C, and the other ways of asking a program to end, abort its signal, so that it can clean
 * up; asking again changes nothing. `failure` begins the sentence that says why it failed.
 */
export async function runProgram(
  failure: string,
  main: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const interrupted = new AbortController();
  let exitCode: number | undefined;
  const interrupt = (code: number): void => {
    exitCode ??= code;
    interrupted.abort(new Error('interrupted'));
  };
  for (const [name, code] of Object.entries(EXIT_CODES)) process.on(name, () => interrupt(code));
  // Whoever read our output has gone, as head does. Our work is to be cleaned up all the same.
  process.stdout.on('error', () => interrupt(EXIT_CODES.SIGHUP));
  process.stderr.on('error', () => {});
  // A defect of ours must not leave anything running either.
  process.on('uncaughtException', (error) => {
    exitCode ??= 1;
    interrupted.abort(error);
  });
  try {
    await main(interrupted.signal);
  } catch (error) {
    process.stderr.write(`\n${red(failure)}: ${describeError(error)}\n`);
    exitCode ??= 1;
  }
  process.exitCode = exitCode ?? 0;
}
