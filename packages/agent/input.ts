// What a client says to a process through attach or exec: standard input, its end, signals, the size of a terminal.
import { parseJson } from '@cloister/link/json.ts';
import type { LinkStream } from '@cloister/link/linkStream.ts';
import type { StreamFrame } from '@cloister/link/messages.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { StreamControlSchema } from '@cloister/model/stream.ts';
import type { Exec } from '@cloister/sandbox/sandbox.ts';

type Frames = Pick<LinkStream<StreamFrame, StreamFrame>, 'cancel' | typeof Symbol.asyncIterator>;

export type Input = Pick<Exec, 'writeStdin' | 'endStdin' | 'signal' | 'resize'>;

/** What the client says, one word after the other: one that must wait holds up the client. Ends with the stream. */
export async function takeInput(frames: Frames, target: Input): Promise<void> {
  try {
    for await (const frame of frames) {
      try {
        await takeFrame(frame, target);
      } catch (error) {
        // Input that is not wanted (any more) is not the end of the output.
        if (!(error instanceof CloisterError) || error.code !== 'state.wrong') throw error;
      }
    }
  } catch (error) {
    frames.cancel(
      error instanceof CloisterError ? error : new CloisterError('internal', describeError(error)),
    );
  }
}

async function takeFrame(frame: StreamFrame, target: Input): Promise<void> {
  if (frame.frame === 'stdin') return await target.writeStdin(frame.stdin);
  if (frame.frame !== 'controlJson') return;
  const message = parseJson(StreamControlSchema, frame.controlJson, 'a control frame');
  if (message.type === 'stdin-eof') target.endStdin();
  else if (message.type === 'resize') target.resize(message.rows, message.columns);
  else if (message.type === 'signal') target.signal(message.signal);
}

/**
 * Whoever attaches writes to one standard input, in turns. A client may leave while its bytes wait for a workload that
 * does not read: those of one at most stay in memory, however many come and go.
 */
export class InputTurns<Target extends object> {
  readonly #last = new WeakMap<Target, Promise<void>>();

  /** Writes when those before have written. Gives up waiting for its turn, without having written, when `gone`. */
  async take(target: Target, write: () => Promise<void>, gone: AbortSignal): Promise<void> {
    const before = this.#last.get(target) ?? Promise.resolve();
    const mine = Promise.withResolvers<void>();
    this.#last.set(target, mine.promise);
    const left = Promise.withResolvers<'gone'>();
    const leave = (): void => left.resolve('gone');
    gone.addEventListener('abort', leave);
    if (gone.aborted) leave();
    try {
      if ((await Promise.race([before, left.promise])) !== 'gone') return await write().finally(mine.resolve);
      if (this.#last.get(target) === mine.promise) this.#last.set(target, before);
      else void before.then(mine.resolve);
    } finally {
      gone.removeEventListener('abort', leave);
    }
  }
}
