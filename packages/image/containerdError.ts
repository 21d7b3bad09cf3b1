// What containerd says went wrong, and which of our codes it is.
import { CloisterError } from '@cloister/model/errors.ts';
import type { ServiceError, status } from '@grpc/grpc-js';

export class ContainerdError extends Error {
  readonly code: status;
  constructor(code: status, message: string) {
    super(message);
    this.name = 'ContainerdError';
    this.code = code;
  }
}

export function fromServiceError(method: string, error: ServiceError): ContainerdError {
  return new ContainerdError(error.code, `containerd's ${method} failed: ${error.details}`.slice(0, 1000));
}

export function diskFull(what: string, cause?: unknown): CloisterError {
  return new CloisterError('node.disk-full', `The node's disk has no room for ${what}.`, { cause });
}

/** True for every way in which a program, a system call or containerd says that the disk is full. */
export function isDiskFull(error: unknown): boolean {
  for (let current = error, depth = 0; current instanceof Error && depth < 8; depth++) {
    if (['ENOSPC', 'EDQUOT'].includes((current as NodeJS.ErrnoException).code ?? '')) return true;
    if (/no space left on device|disk quota exceeded/i.test(current.message)) return true;
    current = current.cause;
  }
  return false;
}
