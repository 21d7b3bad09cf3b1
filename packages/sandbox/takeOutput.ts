// From the guest's words on its output to the log: nothing is believed that the protocol does not allow.
import { type GuestMessage, GuestProtocolError, OUTPUT_WINDOW_BYTES } from './frames.ts';
import type { OutputLog } from './outputLog.ts';

type Message<Type extends GuestMessage['type']> = Extract<GuestMessage, { type: Type }>;

/** Throws GuestProtocolError for a gap, and for more than it was allowed to send. */
export function takeOutput(log: OutputLog, { fd, offset, bytes }: Message<'data'>, atMs: number): void {
  const limit = log.written(fd) + OUTPUT_WINDOW_BYTES;
  if (offset > log.received(fd) || offset + bytes.length > limit || log.ended(fd))
    throw new GuestProtocolError(`output of ${bytes.length} bytes at ${offset}`);
  log.append(fd, offset, bytes, atMs);
}

export function takeOutputEnd(log: OutputLog, { fd, offset }: Message<'eof'>, atMs: number): void {
  if (offset !== log.received(fd)) throw new GuestProtocolError(`its output ends at ${offset}`);
  log.end(fd, atMs);
}
