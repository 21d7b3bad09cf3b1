// A stream of JSON objects, one a line, read no faster than its consumer takes them.
import type { IncomingMessage } from 'node:http';
import { ApiError } from './apiError.ts';

/** Of one line. A log line carries at most 64 KiB of output, as base64. */
export const MAX_LINE_BYTES = 4 * 1024 * 1024;

const NEWLINE = 0x0a;

/**
 * Yields the objects of the body in order. Leaving the loop closes the connection. Throws the signal's reason when
 * aborted, and an ApiError when the connection breaks, a line is no JSON, or is longer than MAX_LINE_BYTES.
 */
export async function* readNdjson<Item>(
  response: IncomingMessage,
  what: string,
  signal?: AbortSignal,
): AsyncGenerator<Item, void, undefined> {
  const stop = () => response.destroy();
  signal?.addEventListener('abort', stop, { once: true });
  try {
    let pending: Buffer[] = [];
    let pendingBytes = 0;
    for await (const chunk of response as AsyncIterable<Buffer>) {
      let start = 0;
      for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
        const line =
          pending.length === 0
            ? chunk.subarray(start, end)
            : Buffer.concat([...pending, chunk.subarray(start, end)]);
        pending = [];
        pendingBytes = 0;
        start = end + 1;
        if (line.length > 0) yield parse<Item>(line, what);
      }
      if (start < chunk.length) {
        pending.push(chunk.subarray(start));
        pendingBytes += chunk.length - start;
        if (pendingBytes > MAX_LINE_BYTES)
          throw new ApiError(
            'internal',
            `${what} failed: a line of the stream is longer than ${MAX_LINE_BYTES} bytes.`,
          );
      }
    }
    signal?.throwIfAborted();
    if (pendingBytes > 0) yield parse<Item>(Buffer.concat(pending), what);
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    if (error instanceof ApiError) throw error;
    throw new ApiError('unavailable', `${what} failed: the stream broke off`, { cause: error });
  } finally {
    signal?.removeEventListener('abort', stop);
    response.destroy();
  }
}

function parse<Item>(line: Buffer, what: string): Item {
  try {
    return JSON.parse(line.toString('utf8')) as Item;
  } catch (cause) {
    throw new ApiError('internal', `${what} failed: a line of the stream is not JSON.`, { cause });
  }
}
