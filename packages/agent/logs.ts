// The part of an output that was asked for: from a time on, or the last bytes or lines, and then what follows.
import type { LogsRequest } from '@cloister/link/messages.ts';
import type { OutputLog, OutputRecord } from '@cloister/sandbox/outputLog.ts';

type Asked = Pick<LogsRequest, 'follow' | 'tailBytes' | 'tailLines' | 'sinceMs'>;
type Log = Pick<OutputLog, 'read' | 'oldestPosition'>;
type Part = Pick<OutputRecord, 'fd' | 'atMs' | 'bytes'>;

const NEWLINE = 0x0a;
/** Of the log, between two places from which a tail can be read. */
const MARK_EVERY_BYTES = 262_144;

/** A place in the log, and what comes before it. */
interface Mark {
  readonly position: number;
  readonly bytes: number;
  readonly lines: number;
}

interface Tail {
  /** Where to begin to read, and what to leave out from there. */
  readonly position: number;
  readonly skipBytes: number;
  readonly skipLines: number;
}

/**
 * In the order in which it was written. Output that was rotated away is not mentioned: logs are what is left. A tail
 * is looked for in the whole log first; memory stays within one chunk all the same.
 */
export async function* readLogs(log: Log, asked: Asked, signal: AbortSignal): AsyncGenerator<Part> {
  const { follow, sinceMs } = asked;
  const { position, skipBytes, skipLines } = await findTail(log, asked, signal);
  let cut = cutter(skipBytes, skipLines);
  for await (const record of log.read({ position, follow, signal })) {
    if ('lostBytes' in record) {
      cut = cutter(0, 0); // rotated away since we looked, and what was to be left out with it
      continue;
    }
    if (sinceMs !== undefined && record.atMs < sinceMs) continue;
    const bytes = cut(record.bytes);
    if (bytes.length > 0) yield { fd: record.fd, atMs: record.atMs, bytes };
  }
}

async function findTail(
  log: Log,
  { tailBytes, tailLines, sinceMs }: Asked,
  signal: AbortSignal,
): Promise<Tail> {
  if (tailBytes === undefined && tailLines === undefined) return { position: 0, skipBytes: 0, skipLines: 0 };
  let bytes = 0;
  let lines = 0;
  let lastByte = NEWLINE;
  const marks: Mark[] = [];
  const mark = (position: number): void => {
    const last = marks.at(-1);
    if (!last || position - last.position >= MARK_EVERY_BYTES) marks.push({ position, bytes, lines });
  };
  mark(log.oldestPosition);
  for await (const record of log.read({ position: log.oldestPosition, signal })) {
    if ('lostBytes' in record) continue;
    if (sinceMs === undefined || record.atMs >= sinceMs) {
      bytes += record.bytes.length;
      lines += countLines(record.bytes);
      lastByte = record.bytes.at(-1) ?? lastByte;
    }
    mark(record.nextPosition);
  }
  if (lastByte !== NEWLINE) lines += 1; // the last line, still without its end
  const skipBytes = tailBytes === undefined ? 0 : Math.max(0, bytes - tailBytes);
  const skipLines = tailLines === undefined ? 0 : Math.max(0, lines - tailLines);
  // The last place at or before where the tail begins: whatever of the two leaves out more says where that is.
  const from = marks.findLast((at) => at.bytes <= skipBytes || at.lines < skipLines) ?? marks[0];
  if (!from) return { position: 0, skipBytes, skipLines };
  return {
    position: from.position,
    skipBytes: Math.max(0, skipBytes - from.bytes),
    skipLines: Math.max(0, skipLines - from.lines),
  };
}

/** Leaves out so many bytes, and what is left of so many lines. */
function cutter(skipBytes: number, skipLines: number): (piece: Buffer) => Buffer {
  let [bytesLeft, linesLeft] = [skipBytes, skipLines];
  return (piece) => {
    const byBytes = Math.min(bytesLeft, piece.length);
    bytesLeft -= byBytes;
    let at = 0;
    while (linesLeft > 0 && at < piece.length) {
      const newline = piece.indexOf(NEWLINE, at);
      at = newline < 0 ? piece.length : newline + 1;
      if (newline >= 0) linesLeft -= 1;
    }
    return piece.subarray(Math.max(byBytes, at));
  };
}

function countLines(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(NEWLINE); at >= 0; at = bytes.indexOf(NEWLINE, at + 1)) count += 1;
  return count;
}
