// Which images a node gives up: decided here, done by the store.
import type { ImageRecord } from './records.ts';

export interface CollectPolicy {
  /** Not used for longer than this: goes. */
  readonly keepMs: number;
  /** Of block images and compressed layers together: above, the least recently used go first. */
  readonly maxBytes: number;
  readonly nowMs: number;
}

/** Younger than this, nothing goes: whoever pulled it is about to use it. */
const FRESH_MS = 60_000;

/** The images to drop, the least recently used first. */
export function chooseUnneeded(
  records: readonly ImageRecord[],
  isUsed: (digest: string) => boolean,
  { keepMs, maxBytes, nowMs }: CollectPolicy,
): ImageRecord[] {
  let bytes = records.reduce((sum, record) => sum + record.blockBytes + record.sizeBytes, 0);
  const candidates = records
    .filter((record) => !isUsed(record.digest) && nowMs - record.lastUsedAtMs >= FRESH_MS)
    .sort((a, b) => a.lastUsedAtMs - b.lastUsedAtMs);
  const chosen: ImageRecord[] = [];
  for (const record of candidates) {
    if (nowMs - record.lastUsedAtMs <= keepMs && bytes <= maxBytes) continue;
    chosen.push(record);
    bytes -= record.blockBytes + record.sizeBytes;
  }
  return chosen;
}
