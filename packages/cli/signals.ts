// Signals by Linux's numbers, which are the workload's, whatever system this runs on; and our own, passed on.
import { UsageError } from './failure.ts';

const NUMBERS: Readonly<Record<string, number>> = {
  HUP: 1,
  INT: 2,
  QUIT: 3,
  ILL: 4,
  TRAP: 5,
  ABRT: 6,
  BUS: 7,
  FPE: 8,
  KILL: 9,
  USR1: 10,
  SEGV: 11,
  USR2: 12,
  PIPE: 13,
  ALRM: 14,
  TERM: 15,
  STKFLT: 16,
  CHLD: 17,
  CONT: 18,
  STOP: 19,
  TSTP: 20,
  TTIN: 21,
  TTOU: 22,
  URG: 23,
  XCPU: 24,
  XFSZ: 25,
  VTALRM: 26,
  PROF: 27,
  WINCH: 28,
  IO: 29,
  PWR: 30,
  SYS: 31,
};

/** "TERM", "SIGTERM", "15". */
export function parseSignal(text: string): number {
  const number = /^\d{1,2}$/.test(text) ? Number(text) : NUMBERS[text.toUpperCase().replace(/^SIG/, '')];
  if (number === undefined || number < 1 || number > 64)
    throw new UsageError(`"${text.slice(0, 40)}" is not a signal; write it like TERM or 15.`);
  return number;
}

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR2'] as const;

/** While open, our process does not die of these signals: the handler gets their numbers. */
export class SignalGate {
  handler: (signal: number) => void = () => {};
  readonly #listeners = FORWARDED.map((name) => [name, () => this.handler(parseSignal(name))] as const);

  constructor() {
    for (const [name, listener] of this.#listeners) process.on(name, listener);
  }

  close(): void {
    for (const [name, listener] of this.#listeners) process.off(name, listener);
  }
}

/** True at the third call within two seconds: somebody means it. */
export function createInsistence(nowMs: () => number = () => performance.now()): () => boolean {
  const times: number[] = [];
  return () => {
    times.push(nowMs());
    if (times.length > 3) times.shift();
    return times.length === 3 && (times[2] ?? 0) - (times[0] ?? 0) <= 2000;
  };
}
