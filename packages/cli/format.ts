// Things as people read them: times ago, short ids, states in colour. Nothing that came from a workload or a server
// reaches the terminal with control characters in it.

import type { Allocation } from '@cloister/model/job.ts';
import { formatDuration } from '@cloister/model/units.ts';
import { isEndedState, type JobWithAllocations } from './states.ts';

export type Colour = 'red' | 'green' | 'yellow' | 'cyan' | 'dim' | 'bold' | 'none';
const SGR: Record<Colour, string> = {
  red: '31',
  green: '32',
  yellow: '33',
  cyan: '36',
  dim: '2',
  bold: '1',
  none: '',
};

export function paint(text: string, colour: Colour, enabled: boolean): string {
  return enabled && colour !== 'none' ? `\x1b[${SGR[colour]}m${text}\x1b[0m` : text;
}

/** Control characters, line breaks among them, and text-direction overrides become "?". */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is removed
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, '?');
}

/** "2m ago"; one unit, which is enough to find one's job again. */
export function formatAge(atMs: number, nowMs: number): string {
  const first = /^\d+[a-z]+/.exec(formatDuration(Math.max(0, nowMs - atMs)));
  return nowMs - atMs < 1000 ? 'now' : `${first?.[0] ?? '?'} ago`;
}

/** "job-abcdefgh": long enough to be unique among a tenant's jobs. */
export function shortId(id: string | undefined): string {
  return id === undefined ? '-' : id.slice(0, 12);
}

export function shortDigest(digest: string): string {
  return digest.replace(/^sha256:/, '').slice(0, 12);
}

/** A command as one line, quoted where a shell would need it. */
export function formatCommand(words: readonly string[]): string {
  return printable(words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word}'`)).join(' '));
}

export function allocationText(allocation: Allocation, nowMs: number): string {
  const { state, timeline, exitCode } = allocation;
  const oom = allocation.oomKilled === true ? ', out of memory' : '';
  const since = (at: number | undefined) => (at === undefined ? '' : ` ${formatAge(at, nowMs)}`);
  if (state === 'running')
    return `running${timeline.startedAt === undefined ? '' : ` ${formatDuration(Math.max(0, nowMs - timeline.startedAt))}`}`;
  if (state === 'exited') return `exited (${exitCode ?? '?'}${oom})${since(timeline.endedAt)}`;
  if (state === 'failed' || state === 'lost')
    return `${state}${allocation.reason ? ` (${printable(allocation.reason.code)})` : ''}${since(timeline.endedAt)}`;
  return state;
}

/** One state for a job: its only instance's, or how many instances are in which. */
export function jobState(record: JobWithAllocations, nowMs: number): { text: string; colour: Colour } {
  const latest = new Map<number, Allocation>();
  for (const allocation of record.allocations) {
    if ((latest.get(allocation.index)?.attempt ?? -1) < allocation.attempt)
      latest.set(allocation.index, allocation);
  }
  const [first, ...others] = latest.values();
  if (!first) return { text: record.job.state, colour: 'dim' };
  if (others.length === 0) return { text: allocationText(first, nowMs), colour: stateColour(first) };
  const counts = new Map<string, number>();
  for (const { state } of latest.values()) counts.set(state, (counts.get(state) ?? 0) + 1);
  const text = [...counts].map(([state, count]) => `${count} ${state}`).join(', ');
  return {
    text,
    colour: [...latest.values()].some(({ state }) => state === 'failed' || state === 'lost') ? 'red' : 'none',
  };
}

export function stateColour(allocation: Allocation): Colour {
  if (allocation.state === 'running') return 'green';
  if (allocation.state === 'failed' || allocation.state === 'lost') return 'red';
  if (isEndedState(allocation.state)) return allocation.exitCode === 0 ? 'dim' : 'yellow';
  return 'cyan';
}
