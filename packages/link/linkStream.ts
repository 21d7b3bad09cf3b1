// A gRPC stream with the same face on both sides of the link: `await write()` waits while the peer does not read,
// and `for await` reads no further than its body has come. Memory stays bounded whoever is slow.

import type { Duplex } from 'node:stream';
import { CloisterError, isErrorCode } from '@cloister/model/errors.ts';
import type { ServiceError } from '@grpc/grpc-js';
import { status } from '@grpc/grpc-js';

/** Writers that may wait for room at once; more is a defect of the caller, who did not await. */
export const MAX_WAITING_WRITES = 1024;

/** What LinkStream needs of grpc-js's client and server calls. `cancel` is there on the client only. */
export type LinkCall = Duplex & { cancel?(): void };

export class LinkStream<Incoming, Outgoing> implements AsyncIterable<Incoming> {
  /** Resolves when the stream is over: with an error when it broke, with undefined when it ended as agreed. */
  readonly closed: Promise<CloisterError | undefined>;
  readonly #call: LinkCall;
  readonly #waitForRoom: (() => void)[] = [];
  #lastWrite: Promise<void> = Promise.resolve();
  #waitingWrites = 0;
  #over = false;
  #failure: CloisterError | undefined;

  constructor(call: LinkCall) {
    this.#call = call;
    const { promise, resolve } = Promise.withResolvers<CloisterError | undefined>();
    this.closed = promise;
    const close = (error?: CloisterError): void => {
      this.#failure ??= error;
      this.#over = true;
      this.#wakeWriters();
      resolve(this.#failure);
    };
    call.on('drain', () => this.#wakeWriters());
    call.on('error', (error: Error) => close(toCloisterError(error)));
    // Client: after the last message. Server: `finish` is our own end, which ends a gRPC call; `cancelled` is theirs.
    call.on('status', () => close());
    call.on('finish', () => {
      if (!call.cancel) close();
    });
    call.on('cancelled', () =>
      close(new CloisterError('unavailable', 'The other side of the link went away.')),
    );
    call.on('close', () => close());
    // Until it is first asked to read, grpc-js's client takes in all that comes, without a bound.
    call.read(0);
  }

  /** Sends in the order of the calls. Resolves when there is room for more; throws when the stream is over. */
  async write(message: Outgoing): Promise<void> {
    if (this.#waitingWrites >= MAX_WAITING_WRITES) {
      throw new CloisterError(
        'limit.exceeded',
        `More than ${MAX_WAITING_WRITES} messages wait for a slow peer.`,
      );
    }
    this.#waitingWrites += 1;
    const mine = this.#lastWrite.then(() => this.#writeOne(message));
    this.#lastWrite = mine.catch(() => {});
    try {
      await mine;
    } finally {
      this.#waitingWrites -= 1;
    }
  }

  /** Nothing more from us, after what was written. On the server's side this ends the whole stream. */
  end(): void {
    void this.#lastWrite.then(() => {
      if (!this.#over) this.#call.end();
    });
  }

  /** Ends both directions now; what was not sent yet is dropped. */
  cancel(error?: CloisterError): void {
    if (this.#over) return;
    this.#failure ??= error;
    this.#over = true;
    this.#wakeWriters();
    if (this.#call.cancel) this.#call.cancel();
    else this.#call.emit('error', toServiceError(error));
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Incoming> {
    try {
      for await (const message of this.#call.iterator({ destroyOnReturn: false })) yield message as Incoming;
    } catch (error) {
      throw this.#failure ?? toCloisterError(error);
    }
    // A broken client call ends its readable side as a whole one does; only the status tells.
    if (this.#call.cancel) {
      const failure = await this.closed;
      if (failure) throw failure;
    }
  }

  async #writeOne(message: Outgoing): Promise<void> {
    if (!this.#over && this.#call.writableNeedDrain) {
      await new Promise<void>((resolve) => this.#waitForRoom.push(resolve));
    }
    if (this.#over || !this.#call.writable) {
      throw this.#failure ?? new CloisterError('unavailable', 'Could not send: the stream is over.');
    }
    this.#call.write(message);
  }

  #wakeWriters(): void {
    for (const wake of this.#waitForRoom.splice(0)) wake();
  }
}

/** Our codes travel as "CODE: message" in the details of a gRPC status. */
export function toServiceError(error?: CloisterError): Partial<ServiceError> & Error {
  const code = error ? grpcStatusOf(error) : status.CANCELLED;
  const details = error ? `${error.code}: ${error.message}`.slice(0, 2000) : 'Cancelled.';
  return Object.assign(new Error(details), { code, details });
}

function grpcStatusOf(error: CloisterError): status {
  if (error.code.startsWith('auth.')) return status.UNAUTHENTICATED;
  if (error.code === 'not-found') return status.NOT_FOUND;
  if (error.code === 'request.invalid') return status.INVALID_ARGUMENT;
  return error.code === 'internal' ? status.INTERNAL : status.UNAVAILABLE;
}

export function toCloisterError(error: unknown): CloisterError {
  if (error instanceof CloisterError) return error;
  const details = (error as Partial<ServiceError>).details ?? (error as Error).message;
  const [, code, message] = /^([a-z-]+(?:\.[a-z-]+)?): ([\s\S]*)$/.exec(details) ?? [];
  if (code && isErrorCode(code)) return new CloisterError(code, message ?? '', { cause: error });
  return new CloisterError('unavailable', `The link broke: ${details}`, { cause: error });
}
