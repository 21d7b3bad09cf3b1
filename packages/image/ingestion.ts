// One write to containerd's content store: bytes in order, each acknowledged with the offset reached, and at the end
// a commit that holds only when the bytes have the digest and the size that were expected.
import { type ClientDuplexStream, type ServiceError, status } from '@grpc/grpc-js';
import { ContainerdError, fromServiceError } from './containerdError.ts';

interface Target {
  readonly ref: string;
  readonly expected: string;
  readonly total: number;
}

interface Answer {
  readonly offset: number;
}

export class Ingestion {
  readonly #stream: ClientDuplexStream<object, Answer>;
  readonly #target: Target;
  #waiting: PromiseWithResolvers<Answer> | undefined;
  #failure: ContainerdError | undefined;

  constructor(stream: ClientDuplexStream<object, Answer>, target: Target) {
    this.#stream = stream;
    this.#target = target;
    stream.on('data', (answer: Answer) => {
      const waiting = this.#waiting;
      this.#waiting = undefined;
      waiting?.resolve(answer);
    });
    stream.on('error', (error: ServiceError) => this.#fail(fromServiceError('Write', error)));
    stream.on('end', () => this.#fail(new ContainerdError(status.UNAVAILABLE, 'containerd ended the write')));
  }

  /** How far an earlier ingestion came; 'committed' when the content is there already. */
  async begin(): Promise<number | 'committed'> {
    try {
      const answer = await this.#ask({ action: 'STAT', ...this.#target });
      return answer.offset;
    } catch (error) {
      if (error instanceof ContainerdError && error.code === status.ALREADY_EXISTS) return 'committed';
      throw error;
    }
  }

  /** Returns the offset after it. */
  async write(offset: number, data: Buffer): Promise<number> {
    const answer = await this.#ask({ action: 'WRITE', ...this.#target, offset, data });
    return answer.offset;
  }

  /** False when the bytes are not those of the expected digest. */
  async commit(): Promise<boolean> {
    try {
      await this.#ask({ action: 'COMMIT', ...this.#target, offset: this.#target.total });
      return true;
    } catch (error) {
      if (!(error instanceof ContainerdError)) throw error;
      if (error.code === status.ALREADY_EXISTS) return true; // somebody else was faster
      if (error.code === status.FAILED_PRECONDITION) return false;
      throw error;
    }
  }

  /** Ends the stream. What is written and not committed stays, to go on with, until it is aborted. */
  close(): void {
    this.#stream.cancel();
  }

  #ask(request: object): Promise<Answer> {
    if (this.#failure) return Promise.reject(this.#failure);
    this.#waiting = Promise.withResolvers<Answer>();
    const { promise } = this.#waiting;
    this.#stream.write(request);
    return promise;
  }

  #fail(error: ContainerdError): void {
    this.#failure ??= error;
    this.#waiting?.reject(this.#failure);
    this.#waiting = undefined;
  }
}
