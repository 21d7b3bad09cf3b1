// What the API says when it refuses (RFC 9457, application/problem+json), as an error of ours.
import {
  CloisterError,
  ERROR_CODES,
  type ErrorCode,
  type FieldError,
  isErrorCode,
} from '@cloister/model/errors.ts';

/** A refusal by the API, or a failure to reach it. */
export class ApiError extends CloisterError {
  /** What to do next, a sentence. */
  readonly hint: string;
  /** The HTTP status; 0 when there was no answer. */
  readonly status: number;

  constructor(
    code: ErrorCode,
    message: string,
    options: { hint?: string; status?: number; cause?: unknown; fields?: readonly FieldError[] } = {},
  ) {
    super(code, message, options);
    this.name = 'ApiError';
    this.hint = options.hint ?? ERROR_CODES[code].hint;
    this.status = options.status ?? 0;
  }
}

/** The error for an answer that is not of success. A body that is no problem document still gives an honest error. */
export function problemToError(status: number, body: string, what: string): ApiError {
  const problem = parseObject(body);
  const detail =
    text(problem['detail']) ??
    text(problem['title']) ??
    `${what} failed: the server answered with status ${status}.`;
  const code = text(problem['code']);
  const hint = text(problem['hint']);
  return new ApiError(code !== undefined && isErrorCode(code) ? code : codeOfStatus(status), detail, {
    status,
    fields: fieldErrors(problem['errors']),
    ...(hint === undefined ? {} : { hint }),
  });
}

/** The error for a reason as allocations and streams carry it. A code that this version does not know is kept in the message. */
export function reasonToError(reason: { code: string; message: string }): ApiError {
  return isErrorCode(reason.code)
    ? new ApiError(reason.code, reason.message)
    : new ApiError('internal', `${reason.message} (${reason.code})`, {
        hint: 'Update this program: the server is newer.',
      });
}

/** The error for a connection that failed. Certificate problems get a hint of their own: waiting does not cure them. */
export function connectionError(cause: unknown, what: string, host: string): ApiError {
  if (cause instanceof CloisterError)
    return cause instanceof ApiError ? cause : new ApiError(cause.code, cause.message);
  const failure = cause as NodeJS.ErrnoException;
  const code = typeof failure?.code === 'string' ? failure.code : '';
  const isCertificate = /CERT|SELF_SIGNED|UNABLE_TO|ERR_TLS|ERR_SSL|ALTNAME/.test(code);
  const hint = isCertificate
    ? 'Check that the CA file is the one of this cluster, and that the URL has a name of its certificate.'
    : code === 'ECONNREFUSED'
      ? 'Check that the control plane is running (make up) and that the URL is right.'
      : ERROR_CODES.unavailable.hint;
  return new ApiError('unavailable', `${what} failed: no answer from ${host}`, { cause, hint });
}

function codeOfStatus(status: number): ErrorCode {
  if (status === 401) return 'auth.invalid';
  if (status === 403) return 'auth.forbidden';
  if (status === 404) return 'not-found';
  if (status === 409) return 'conflict';
  if (status === 413) return 'request.too-large';
  if (status === 429) return 'limit.exceeded';
  if (status >= 400 && status < 500) return 'request.invalid';
  if (status >= 502 && status <= 504) return 'unavailable';
  return 'internal';
}

function parseObject(body: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(body);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

const text = (value: unknown): string | undefined =>
  typeof value === 'string' && value !== '' ? value.slice(0, 4096) : undefined;

function fieldErrors(value: unknown): FieldError[] {
  if (!Array.isArray(value)) return [];
  return value.slice(0, 100).flatMap((item: unknown) => {
    const { path, message } = (item ?? {}) as Record<string, unknown>;
    return typeof path === 'string' && typeof message === 'string' ? [{ path, message }] : [];
  });
}
