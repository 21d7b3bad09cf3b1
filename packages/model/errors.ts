// Every error that leaves a part of the system has a stable code. The table says what HTTP status the API gives
// it and what its reader should do next; the message says what was tried and why it failed.

export const ERROR_CODES = {
  // the caller's request
  'request.invalid': {
    status: 422,
    hint: 'Correct the fields listed under "errors" and send the request again.',
  },
  'request.too-large': { status: 413, hint: 'Send a smaller body.' },
  'auth.missing': { status: 401, hint: 'Send "Authorization: Bearer TOKEN".' },
  'auth.invalid': { status: 401, hint: 'Ask whoever runs this cluster for a valid token.' },
  'auth.forbidden': { status: 403, hint: 'Use a token of an operator.' },
  'not-found': { status: 404, hint: 'List the objects that your token can see and check the name or id.' },
  conflict: { status: 409, hint: 'Read the object again and repeat the change on its newest version.' },
  'name.taken': { status: 409, hint: 'Choose another name, or remove the object that has it.' },
  'limit.exceeded': {
    status: 429,
    hint: 'Wait for running work to end, remove what is not needed, or ask for a higher limit.',
  },
  'state.wrong': { status: 409, hint: 'Check the state of the object with "cloister inspect".' },
  'folder.locked': {
    status: 409,
    hint: 'Stop the other process that uses this folder, or choose another folder.',
  },
  unavailable: { status: 503, hint: 'Try again in a moment.' },
  internal: { status: 500, hint: 'This is a defect of Cloister. Report it with the time of the request.' },
  // the store
  'store.compacted': { status: 410, hint: 'Read the current state again, then watch from its revision.' },
  // nodes and joining
  'join.token-invalid': { status: 401, hint: 'Create a new join token with "cloister node token".' },
  'join.token-expired': { status: 401, hint: 'Create a new join token with "cloister node token".' },
  'join.token-used': {
    status: 401,
    hint: 'A join token works once. If you did not use it, somebody else did: remove the node that joined with it.',
  },
  'join.name-taken': {
    status: 409,
    hint: 'Give the agent another node name, or remove the node that has it.',
  },
  'node.down': { status: 503, hint: 'Wait for the node to come back, or remove it.' },
  // images
  'image.reference-invalid': { status: 422, hint: 'Write it as [REGISTRY/]NAME[:TAG|@sha256:DIGEST].' },
  'image.not-found': { status: 404, hint: 'Check the name and the tag, and that the registry has them.' },
  'image.unauthorized': { status: 401, hint: 'Configure credentials for this registry on the node.' },
  'image.registry-unreachable': {
    status: 502,
    hint: 'Check that the registry is up and that the nodes may reach it.',
  },
  'image.digest-mismatch': {
    status: 502,
    hint: 'The registry served other bytes than their digest names. Do not trust it; push the image again.',
  },
  'image.platform-missing': {
    status: 422,
    hint: 'Push the image for the platform of the nodes, or choose another.',
  },
  'image.unsupported': {
    status: 422,
    hint: 'Push the image in OCI or Docker schema 2 format with tar, gzip or zstd layers.',
  },
  'image.too-large': { status: 413, hint: 'Use a smaller image, or raise the limit of the nodes.' },
  'image.pull-failed': { status: 502, hint: 'Look at the message; pull again when its cause is gone.' },
  'node.disk-full': { status: 507, hint: 'Free space on the node, or ask for a smaller disk.' },
  // sandboxes
  'sandbox.start-failed': { status: 500, hint: "Look at the reason and at the agent's log on that node." },
  'sandbox.boot-timeout': {
    status: 500,
    hint: 'The guest never answered. Give it more memory, or try again.',
  },
  'sandbox.boot-failed': {
    status: 500,
    hint: 'The guest ended before it was ready. Give it more memory, or look at its console in the reason.',
  },
  'sandbox.guest-panic': { status: 500, hint: 'The guest kernel panicked. The reason has its last words.' },
  'sandbox.vmm-died': {
    status: 500,
    hint: "Something ended the VMM from outside. Look at the node's kernel log.",
  },
  'sandbox.guest-protocol': { status: 500, hint: "The guest broke the channel's protocol and was killed." },
  'sandbox.command-not-found': { status: 422, hint: 'Check the command and the PATH of the image.' },
  'sandbox.command-not-executable': { status: 422, hint: "Check the file's mode bits and its format." },
  'sandbox.user-not-found': { status: 422, hint: "The image's /etc/passwd or /etc/group has no such entry." },
} as const satisfies Record<string, { status: number; hint: string }>;

export type ErrorCode = keyof typeof ERROR_CODES;

/** One field of a request that is wrong. `path` is a JSON pointer into the body, or `query/NAME`, `params/NAME`. */
export interface FieldError {
  readonly path: string;
  readonly message: string;
}

/** The error type of every part. `message`: what was tried and why it failed, a full sentence for a user. */
export class CloisterError extends Error {
  readonly code: ErrorCode;
  readonly fields: readonly FieldError[];

  constructor(
    code: ErrorCode,
    message: string,
    options?: { cause?: unknown; fields?: readonly FieldError[] },
  ) {
    super(message, options?.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'CloisterError';
    this.code = code;
    this.fields = options?.fields ?? [];
  }
}

export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(ERROR_CODES, text);
}

/** The chain of messages from the outermost error to its first cause, in one line, at most 2,000 characters. */
export function describeError(error: unknown): string {
  const parts: string[] = [];
  let current: unknown = error;
  for (let depth = 0; depth < 8 && current !== undefined && current !== null; depth++) {
    parts.push(current instanceof Error ? current.message : String(current));
    current = current instanceof Error ? current.cause : undefined;
  }
  return parts.join(': ').slice(0, 2000);
}
