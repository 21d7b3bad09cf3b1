// The output of one allocation on the node's disk: stdout and stderr with their times, in segments of bounded size and
// number. It is the only copy of the output: the guest forgets a byte when it is here, and whoever reads (logs,
// attach) reads from here. Kill -9 at any moment loses nothing that was acknowledged: opening finds the offsets again.
//
// A segment file is named by the position of its first record. Header: magic (8), stdout offset u64, stderr offset u64.
// A record: payload length u32, fd u8 (1 stdout, 2 stderr; +0x80: that stream's end), 3 zero bytes, time f64, payload.
import { type FileHandle, mkdir, open, readdir, rm, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import type { OutputFd } from './frames.ts';

const MAGIC = Buffer.from('CLOGSEG1');
const SEGMENT_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;
const MAX_RECORD_BYTES = 65_536;
/** Records that wait to be written grow together up to this size. */
const SMALL_RECORD_BYTES = 2_048;
const READ_BYTES = 131_072;

export interface OutputLogLimits {
  /** A segment is closed when it is this long. Default 4 MiB. */
  readonly segmentBytes: number;
  /** The oldest segment is dropped beyond this many. Default 16. */
  readonly maxSegments: number;
}

const DEFAULT_LIMITS: OutputLogLimits = { segmentBytes: 4 * 1_048_576, maxSegments: 16 };

export interface OutputRecord {
  /** Where the next record begins. */
  readonly nextPosition: number;
  readonly atMs: number;
  readonly fd: OutputFd;
  readonly bytes: Buffer;
}

interface Segment {
  readonly start: number;
  end: number;
}

interface Pending {
  readonly buffer: Buffer;
  readonly fd: OutputFd;
  readonly bytes: number;
  readonly eof: boolean;
}

/** Thrown to readers that asked for what was rotated away; they go on from `oldestPosition`. */
export class LogGap {
  readonly lostBytes: number;
  constructor(lostBytes: number) {
    this.lostBytes = lostBytes;
  }
}

const segmentName = (start: number): string => `${start.toString().padStart(16, '0')}.log`;

export class OutputLog {
  readonly #folder: string;
  readonly #limits: OutputLogLimits;
  readonly #segments: Segment[] = [];
  readonly #pins = new Set<{ position: number }>();
  #file: FileHandle | undefined;
  #pending: Pending[] = [];
  #writing = false;
  #failed: Error | undefined;
  #changed = Promise.withResolvers<void>();
  #received = { 1: 0, 2: 0 };
  #written = { 1: 0, 2: 0 };
  #ended = { 1: false, 2: false };
  #finishing = false;
  #finished = false;
  readonly #onWritten: (fd: OutputFd, offset: number) => void;
  readonly #onFailed: (error: Error) => void;

  private constructor(folder: string, limits: OutputLogLimits, hooks: OutputLogHooks) {
    this.#folder = folder;
    this.#limits = limits;
    this.#onWritten = hooks.onWritten ?? (() => {});
    this.#onFailed = hooks.onFailed ?? (() => {});
  }

  /** A new log in `folder`, which is not there yet or has none. */
  static create(
    folder: string,
    hooks: OutputLogHooks = {},
    limits: Partial<OutputLogLimits> = {},
  ): OutputLog {
    return new OutputLog(folder, { ...DEFAULT_LIMITS, ...limits }, hooks);
  }

  /** Opens or makes the log in `folder`; a record cut short by a crash is cut away. */
  static async open(
    folder: string,
    hooks: OutputLogHooks = {},
    limits: Partial<OutputLogLimits> = {},
  ): Promise<OutputLog> {
    const log = new OutputLog(folder, { ...DEFAULT_LIMITS, ...limits }, hooks);
    await mkdir(folder, { recursive: true, mode: 0o700 });
    await log.#recover();
    return log;
  }

  /** Stream offset up to which the output is safely here. */
  written(fd: OutputFd): number {
    return this.#written[fd];
  }

  /** Stream offset up to which the output is here, or on its way to the disk. */
  received(fd: OutputFd): number {
    return this.#received[fd];
  }

  ended(fd: OutputFd): boolean {
    return this.#ended[fd];
  }

  get finished(): boolean {
    return this.#finished;
  }

  get oldestPosition(): number {
    return this.#segments[0]?.start ?? 0;
  }

  get endPosition(): number {
    return this.#segments.at(-1)?.end ?? 0;
  }

  /**
   * Takes output of a stream at its offset. What is here already is skipped (a resumed guest sends again); a gap is an
   * error of the guest and throws. Memory is bounded by the guest's window, which grows only as onWritten is called.
   */
  append(fd: OutputFd, offset: number, bytes: Buffer, atMs: number): void {
    const known = this.#received[fd];
    if (offset > known) throw new RangeError(`output at ${offset} where ${known} was next`);
    const fresh = bytes.subarray(Math.min(bytes.length, known - offset));
    if (fresh.length === 0 || this.#ended[fd]) return;
    this.#received[fd] += fresh.length;
    this.#push(fd, fresh, atMs, false);
  }

  /** The stream ends at its present offset. */
  end(fd: OutputFd, atMs: number): void {
    if (this.#ended[fd]) return;
    this.#ended[fd] = true;
    this.#push(fd, Buffer.alloc(0), atMs, true);
  }

  /** Nothing more will come: followers end when they have read all. Resolves when all is written. */
  async finish(): Promise<void> {
    this.#finishing = true;
    this.#notify();
    while ((this.#pending.length > 0 || this.#writing) && !this.#failed) await this.#changed.promise;
    this.#finished = true;
    this.#notify();
    await this.#file?.close();
    this.#file = undefined;
  }

  #push(fd: OutputFd, bytes: Buffer, atMs: number, eof: boolean): void {
    if (this.#failed) return;
    const last = this.#pending.at(-1);
    if (!eof && last && !last.eof && last.fd === fd && last.bytes + bytes.length <= SMALL_RECORD_BYTES) {
      // Output that comes in single bytes must not cost a record each, in memory and on the disk.
      const buffer = Buffer.concat([last.buffer, bytes]);
      buffer.writeUInt32LE(last.bytes + bytes.length, 0);
      this.#pending[this.#pending.length - 1] = { ...last, buffer, bytes: last.bytes + bytes.length };
      return;
    }
    const buffer = Buffer.allocUnsafe(RECORD_HEADER_BYTES + bytes.length);
    buffer.writeUInt32LE(bytes.length, 0);
    buffer.writeUInt32LE(eof ? fd | 0x80 : fd, 4);
    buffer.writeDoubleLE(atMs, 8);
    bytes.copy(buffer, RECORD_HEADER_BYTES);
    this.#pending.push({ buffer, fd, bytes: bytes.length, eof });
    if (!this.#writing) void this.#write();
  }

  async #write(): Promise<void> {
    this.#writing = true;
    try {
      while (this.#pending.length > 0) {
        await this.#makeRoom();
        const batch = this.#takeBatch();
        const segment = this.#segments.at(-1);
        if (!this.#file || !segment) throw new Error('no open segment');
        const total = batch.reduce((sum, record) => sum + record.buffer.length, 0);
        const { bytesWritten } = await this.#file.writev(batch.map((record) => record.buffer));
        if (bytesWritten !== total) throw new Error(`wrote ${bytesWritten} of ${total} bytes of output`);
        segment.end += total;
        for (const record of batch) this.#written[record.fd] += record.bytes;
        for (const fd of new Set(batch.map((record) => record.fd))) this.#onWritten(fd, this.#written[fd]);
        this.#notify();
      }
    } catch (error) {
      this.#failed = error instanceof Error ? error : new Error(String(error));
      this.#onFailed(this.#failed);
    } finally {
      this.#writing = false;
      this.#notify();
    }
  }

  /** As many records as the last segment has room for, one at least: segments keep their size however fast output comes. */
  #takeBatch(): Pending[] {
    const last = this.#segments.at(-1);
    let room = last ? this.#limits.segmentBytes - (last.end - last.start) : 0;
    let count = 0;
    for (; count < Math.min(this.#pending.length, 256) && (count === 0 || room > 0); count++) {
      room -= this.#pending[count]?.buffer.length ?? 0;
    }
    return this.#pending.splice(0, count);
  }

  #notify(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers<void>();
  }

  /** Starts a new segment when the last is full. Waits while that would drop what an attached reader has yet to read. */
  async #makeRoom(): Promise<void> {
    const last = this.#segments.at(-1);
    if (this.#file && last && last.end - last.start < this.#limits.segmentBytes) return;
    while (this.#segments.length >= this.#limits.maxSegments) {
      const oldest = this.#segments[0];
      if (!oldest) break;
      if ([...this.#pins].some((pin) => pin.position < oldest.end)) {
        // Nobody waits for a slow reader at the end: what is still to be written has room beyond the bound.
        if (this.#finishing) break;
        await this.#changed.promise;
        continue;
      }
      this.#segments.shift();
      await rm(join(this.#folder, segmentName(oldest.start)), { force: true });
    }
    await this.#file?.close();
    const start = last?.end ?? 0;
    if (!last) await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    this.#file = await open(join(this.#folder, segmentName(start)), 'ax', 0o600);
    const header = Buffer.alloc(SEGMENT_HEADER_BYTES);
    MAGIC.copy(header);
    header.writeBigUInt64LE(BigInt(this.#written[1]), 8);
    header.writeBigUInt64LE(BigInt(this.#written[2]), 16);
    await this.#file.write(header);
    this.#segments.push({ start, end: start });
  }

  async #recover(): Promise<void> {
    const names = (await readdir(this.#folder)).filter((name) => /^\d{16}\.log$/.test(name)).sort();
    for (const [index, name] of names.entries()) {
      const path = join(this.#folder, name);
      const start = Number(name.slice(0, 16));
      const size = (await stat(path)).size;
      if (size < SEGMENT_HEADER_BYTES) {
        await rm(path); // made, but not begun
        continue;
      }
      this.#segments.push({ start, end: start + size - SEGMENT_HEADER_BYTES });
      if (index === names.length - 1) await this.#recoverTail(path, start);
    }
    const last = this.#segments.at(-1);
    if (!last) return;
    // The header of the last segment knows the offsets, but a removed last one (size 0) leaves the one before it.
    if (names.at(-1) !== segmentName(last.start))
      await this.#recoverTail(join(this.#folder, segmentName(last.start)), last.start);
    this.#file = await open(join(this.#folder, segmentName(last.start)), 'a', 0o600);
  }

  async #recoverTail(path: string, start: number): Promise<void> {
    const file = await open(path, 'r');
    try {
      const header = Buffer.alloc(SEGMENT_HEADER_BYTES);
      await file.read(header, 0, SEGMENT_HEADER_BYTES, 0);
      const offsets = { 1: Number(header.readBigUInt64LE(8)), 2: Number(header.readBigUInt64LE(16)) };
      const segment = this.#segments.at(-1);
      if (!segment) return;
      let at = 0;
      const size = segment.end - segment.start;
      const record = Buffer.alloc(RECORD_HEADER_BYTES);
      while (size - at >= RECORD_HEADER_BYTES) {
        await file.read(record, 0, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES + at);
        const length = record.readUInt32LE(0);
        const fd = record.readUInt8(4) & 0x7f;
        if (length > MAX_RECORD_BYTES || (fd !== 1 && fd !== 2) || at + RECORD_HEADER_BYTES + length > size)
          break;
        offsets[fd] += length;
        if (record.readUInt8(4) & 0x80) this.#ended[fd] = true;
        at += RECORD_HEADER_BYTES + length;
      }
      this.#received = { ...offsets };
      this.#written = { ...offsets };
      segment.end = start + at;
      if (at < size) await truncate(path, SEGMENT_HEADER_BYTES + at);
    } finally {
      await file.close();
    }
  }

  /**
   * Reads from `position` (0: the oldest that was ever there) to the end; with `follow`, waits for more until the log is
   * finished. With `pin`, nothing that this reader has yet to read is rotated away: the workload is held back
   * instead. A LogGap comes where records were rotated away. At most one chunk of 128 KiB is in memory.
   */
  async *read(options: {
    position?: number;
    follow?: boolean;
    pin?: boolean;
    signal?: AbortSignal;
  }): AsyncGenerator<OutputRecord | LogGap> {
    const pin = { position: options.position ?? 0 };
    if (options.pin) this.#pins.add(pin);
    const aborted = Promise.withResolvers<void>();
    const onAbort = (): void => aborted.resolve();
    options.signal?.addEventListener('abort', onAbort, { once: true });
    try {
      let position = options.position ?? 0;
      while (!options.signal?.aborted) {
        const changed = this.#changed.promise;
        if (position < this.oldestPosition) {
          yield new LogGap(this.oldestPosition - position);
          position = this.oldestPosition;
        }
        if (position >= this.endPosition) {
          if (!options.follow || this.#finished || this.#failed) return;
          await Promise.race([changed, aborted.promise]);
          continue;
        }
        const records = await this.#readChunk(position);
        if (!records) continue; // rotated away in between
        if (records.length === 0) throw new Error(`the output log is damaged at ${position}`);
        for (const record of records) {
          position = record.nextPosition;
          if (record.bytes.length > 0) yield record;
          if (options.signal?.aborted) return;
        }
        pin.position = position;
        if (options.pin && this.#segments.length >= this.#limits.maxSegments) this.#notify();
      }
    } finally {
      options.signal?.removeEventListener('abort', onAbort);
      if (this.#pins.delete(pin)) this.#notify();
    }
  }

  async #readChunk(position: number): Promise<OutputRecord[] | undefined> {
    const segment = this.#segments.find(
      (candidate) => position >= candidate.start && position < candidate.end,
    );
    if (!segment) return undefined;
    let file: FileHandle;
    try {
      file = await open(join(this.#folder, segmentName(segment.start)), 'r');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
    try {
      const length = Math.min(READ_BYTES, segment.end - position);
      const buffer = Buffer.allocUnsafe(length);
      const { bytesRead } = await file.read(
        buffer,
        0,
        length,
        SEGMENT_HEADER_BYTES + position - segment.start,
      );
      return parseRecords(buffer.subarray(0, bytesRead), position);
    } finally {
      await file.close();
    }
  }
}

export interface OutputLogHooks {
  /** The stream is safe up to `offset`. */
  readonly onWritten?: (fd: OutputFd, offset: number) => void;
  /** The disk refused: nothing more is written. */
  readonly onFailed?: (error: Error) => void;
}

function parseRecords(buffer: Buffer, position: number): OutputRecord[] {
  const records: OutputRecord[] = [];
  let at = 0;
  while (buffer.length - at >= RECORD_HEADER_BYTES) {
    const length = buffer.readUInt32LE(at);
    if (buffer.length - at < RECORD_HEADER_BYTES + length) break;
    const fd = (buffer.readUInt8(at + 4) & 0x7f) === 2 ? 2 : 1;
    const next = at + RECORD_HEADER_BYTES + length;
    records.push({
      nextPosition: position + next,
      atMs: buffer.readDoubleLE(at + 8),
      fd,
      bytes: buffer.subarray(at + RECORD_HEADER_BYTES, next),
    });
    at = next;
  }
  return records;
}
