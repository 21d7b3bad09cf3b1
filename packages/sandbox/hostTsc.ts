// How fast this host's time-stamp counter runs. A guest in software emulation reads the host's counter, and cannot
// measure it: one boot in eight hangs trying to (it is told instead).
import { readFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { readFileIfThere } from '@cloister/kit/file.ts';

const FALLBACK_KHZ = 2_000_000;

/** The counter's rate in kHz. A guess that is off makes the guest's clock run fast or slow by as much. */
export async function hostTscKhz(): Promise<number> {
  const baseKhz = Number(await readFileIfThere('/sys/devices/system/cpu/cpu0/cpufreq/base_frequency'));
  return tscKhz(await readFile('/proc/cpuinfo', 'utf8'), baseKhz, cpus()[0]?.speed ?? 0);
}

/**
 * `baseKhz`: the processor's base frequency as cpufreq has it, 0 without. The counter runs at the base frequency. In a
 * machine without frequency scaling (a virtual one), "cpu MHz" is the counter's own rate, to the kHz; with scaling it is
 * the speed of the moment, and the model's name ("@ 2.60GHz") is nearer to the truth.
 */
export function tscKhz(cpuinfo: string, baseKhz: number, speedMHz: number): number {
  const named = Number(/^model name\s*:.*@ ([\d.]+) ?GHz/m.exec(cpuinfo)?.[1] ?? 0) * 1_000_000;
  const current = Number(/^cpu MHz\s*: ([\d.]+)/m.exec(cpuinfo)?.[1] ?? speedMHz) * 1000;
  const isVirtual = /^flags\s*:.*\bhypervisor\b/m.exec(cpuinfo) !== null;
  const candidates = isVirtual ? [current, baseKhz, named] : [baseKhz, named, current];
  return Math.round(candidates.find((khz) => Number.isFinite(khz) && khz > 0) ?? FALLBACK_KHZ);
}
