// A machine has ended and nobody had asked for it: what to tell its user.
import { CloisterError } from '@cloister/model/errors.ts';
import type { Reason } from '@cloister/model/schema.ts';
import type { GuestConsole } from './guestConsole.ts';
import { lastWords } from './jail.ts';

export async function whyMachineEnded(of: {
  readonly hasBooted: boolean;
  readonly memoryMiB: number;
  readonly console: GuestConsole | undefined;
  /** Of the sandbox. */
  readonly folder: string;
}): Promise<Reason> {
  const { console } = of;
  const panic = console?.panic();
  if (of.hasBooted) {
    if (panic) return { code: 'sandbox.guest-panic', message: `The guest's kernel panicked: ${panic}` };
    const message = `The machine was ended from outside. The VMM's last words: ${await lastWords(of.folder)}`;
    return { code: 'sandbox.vmm-died', message };
  }
  const words =
    panic ?? `its console: ${console?.lastWords() ?? 'never opened'}; the VMM: ${await lastWords(of.folder)}`;
  return {
    code: 'sandbox.boot-failed',
    message: `The machine ended while it booted, with ${of.memoryMiB} MiB of memory: ${words}`,
  };
}

export const bootTimeout = (timeoutMs: number): CloisterError =>
  new CloisterError('sandbox.boot-timeout', `The guest did not answer within ${timeoutMs} ms.`);

export function isHangUp(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ECONNRESET' || code === 'EPIPE';
}
