// Quantities as people write them, and as the system counts them. The unit is always last in a name.
import { CloisterError } from './errors.ts';

const SIZE = /^(\d{1,9}(?:\.\d{1,3})?)\s*(b|k|m|g|t|ki|mi|gi|ti|kb|mb|gb|tb|kib|mib|gib|tib)?$/i;
const POWER: Record<string, number> = { b: 0, k: 1, m: 2, g: 3, t: 4 };

/** Parses "512m", "1.5g", "2GiB" (binary multiples, as docker's options) to MiB. A bare number is MiB. */
export function parseMiB(text: string): number {
  const match = SIZE.exec(text.trim());
  if (!match?.[1]) {
    throw new CloisterError(
      'request.invalid',
      `"${text.slice(0, 40)}" is not a size; write it like 512m or 2g.`,
    );
  }
  const unit = match[2]?.[0]?.toLowerCase() ?? 'm';
  const bytes = Number(match[1]) * 1024 ** (POWER[unit] ?? 2);
  return Math.ceil(bytes / 1024 ** 2);
}

/** Parses CPUs as docker's --cpus ("0.5", "2") or as milli ("500m") to thousandths of a CPU. */
export function parseCpuMilli(text: string): number {
  const match = /^(\d{1,6}(?:\.\d{1,3})?)(m)?$/.exec(text.trim());
  if (!match?.[1]) {
    throw new CloisterError(
      'request.invalid',
      `"${text.slice(0, 40)}" is not a number of CPUs; write it like 0.5 or 500m.`,
    );
  }
  return Math.round(Number(match[1]) * (match[2] ? 1 : 1000));
}

const STEPS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const;

/** 1536 -> "1.5 KiB". */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let step = 0;
  while (value >= 1024 && step < STEPS.length - 1) {
    value /= 1024;
    step += 1;
  }
  return `${step === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${STEPS[step] ?? 'B'}`;
}

/** 93_000 -> "1m33s"; two units at most. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))}ms`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m${seconds % 60}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}h${minutes % 60}m`;
  return `${Math.floor(hours / 24)}d${hours % 24}h`;
}
