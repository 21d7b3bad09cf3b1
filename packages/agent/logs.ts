// The part of an output that was asked for: from a time on, or the last bytes or lines, and then what follows.
import type { LogsRequest } from '@cloister/link/messages.ts';
import type { OutputLog, OutputRecord } from '@cloister/sandbox/outputLog.ts';

type Asked = Pick<LogsRequest, 'follow' | 'tailBytes' | 'tailLines' | 'sinceMs'>;
type Part = Pick<OutputRecord, 'fd' | 'atMs' | 'bytes'>;

const NEWLINE = 0x0a;

/**
 * In the order in which it was written. Output that was rotated away is not mentioned: logs are what is left. A tail
 * reads the log twice, once to count; memory stays within one chunk.
 */
export async function* readLogs(log: OutputLog, asked: Asked, signal: AbortSignal): AsyncGenerator<Part> {
  const skip = await countToSkip(log, asked, signal);
  for await (const record of log.read({ follow: asked.follow, signal })) {
    if ('lostBytes' in record) continue;
    if (asked.sinceMs !== undefined && record.atMs < asked.sinceMs) continue;
    const bytes = skip ? skip(record.bytes) : record.bytes;
    if (bytes.length > 0) yield { fd: record.fd, atMs: record.atMs, bytes };
  }
}

/** Cuts from each piece what lies before the tail. */
async function countToSkip(
  log: OutputLog,
  { tailBytes, tailLines, sinceMs }: Asked,
  signal: AbortSignal,
): Promise<((bytes: Buffer) => Buffer) | undefined> {
  if (tailBytes === undefined && tailLines === undefined) return undefined;
  let bytes = 0;
  let lines = 0;
  let lastByte = NEWLINE;
  for await (const record of log.read({ signal })) {
    if ('lostBytes' in record || (sinceMs !== undefined && record.atMs < sinceMs)) continue;
    bytes += record.bytes.length;
    lines += countLines(record.bytes);
    lastByte = record.bytes.at(-1) ?? lastByte;
  }
  if (lastByte !== NEWLINE) lines += 1; // the last line, still without its end
  let skipBytes = tailBytes === undefined ? 0 : Math.max(0, bytes - tailBytes);
  let skipLines = tailLines === undefined ? 0 : Math.max(0, lines - tailLines);
  return (piece) => {
    let from = Math.min(skipBytes, piece.length);
    skipBytes -= from;
    let at = 0;
    while (skipLines > 0 && at < piece.length) {
      const newline = piece.indexOf(NEWLINE, at);
      at = newline < 0 ? piece.length : newline + 1;
      if (newline >= 0) skipLines -= 1;
    }
    from = Math.max(from, at);
    return piece.subarray(from);
  };
}

function countLines(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(NEWLINE); at >= 0; at = bytes.indexOf(NEWLINE, at + 1)) count += 1;
  return count;
}
