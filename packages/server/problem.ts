// Errors as they leave the API: RFC 9457 problem documents with our stable codes, and nothing of the inside.
import { CloisterError, ERROR_CODES, type ErrorCode, type FieldError } from '@cloister/model/errors.ts';
import type { FastifySchemaValidationError } from 'fastify';

export interface Problem {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  readonly code: ErrorCode;
  readonly hint: string;
  readonly errors?: readonly FieldError[];
}

/** What Fastify throws: a status, and for schemas what was wrong where. */
interface HttpError {
  readonly statusCode?: number;
  readonly code?: string;
  readonly message?: string;
  readonly validation?: readonly FastifySchemaValidationError[];
  readonly validationContext?: string;
}

const MAX_FIELDS = 20;
const MAX_DETAIL = 2000;

export function problemOf(error: CloisterError): Problem {
  const { status, hint } = ERROR_CODES[error.code];
  return {
    type: `urn:cloister:error:${error.code}`,
    title: error.code,
    status,
    detail: error.message.slice(0, MAX_DETAIL),
    code: error.code,
    hint,
    ...(error.fields.length > 0 ? { errors: error.fields } : {}),
  };
}

/** Any error as one of ours. Undefined: it is a defect, which its caller logs and answers with `internal`. */
export function asCloisterError(error: unknown): CloisterError | undefined {
  if (error instanceof CloisterError) return error;
  const { statusCode, validation, validationContext, message } = error as HttpError;
  if (validation) return invalidFields(validation, validationContext ?? 'body');
  if (statusCode === 413) return new CloisterError('request.too-large', 'The body is larger than 1 MiB.');
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return new CloisterError(
      'request.invalid',
      `The request could not be read: ${message ?? 'it is malformed'}.`,
    );
  }
  return undefined;
}

function invalidFields(errors: readonly FastifySchemaValidationError[], context: string): CloisterError {
  const fields: FieldError[] = [];
  for (const { instancePath, keyword, message, params } of errors) {
    const inside = { ...params }.missingProperty ?? { ...params }.additionalProperty;
    const pointer =
      instancePath +
      (typeof inside === 'string' ? `/${inside.replace(/~/g, '~0').replace(/\//g, '~1')}` : '');
    const path =
      context === 'body' ? pointer || '/' : `${context === 'querystring' ? 'query' : context}${pointer}`;
    const said =
      keyword === 'additionalProperties' ? 'is not known' : keyword === 'required' ? 'is missing' : message;
    if (keyword !== 'anyOf' && fields.length < MAX_FIELDS) fields.push({ path, message: said ?? 'is wrong' });
  }
  const first = fields[0] ?? { path: '/', message: 'has the wrong shape' };
  return new CloisterError('request.invalid', `The request is not valid: ${first.path} ${first.message}.`, {
    fields,
  });
}
