// What the demo draws: where the time of a start went, and the same questions asked inside and outside of a machine.
import type { Timeline } from '@cloister/model/job.ts';
import { bold, cyan, dim } from './terminal.ts';

const BAR_WIDTH = 44;
const STAGES: readonly (readonly [what: string, stage: keyof Timeline])[] = [
  ['a node chosen', 'placedAt'],
  ['the node told', 'receivedAt'],
  ['image on the node', 'imageReadyAt'],
  ['jail made, VMM started', 'jailReadyAt'],
  ['guest booted', 'bootedAt'],
  ['container started', 'startedAt'],
  ['first byte of output', 'firstOutputAt'],
];

/** From the acceptance of the job to the first byte of its output. */
export function startMs(timeline: Timeline): number {
  return (timeline.firstOutputAt ?? 0) - (timeline.acceptedAt ?? 0);
}

/** A line a stage, each bar beginning where the one before it ended. */
export function drawTimeline(timeline: Timeline): string[] {
  const beginMs = timeline.acceptedAt ?? 0;
  const totalMs = Math.max(1, startMs(timeline));
  const column = (atMs: number): number => Math.round((BAR_WIDTH * (atMs - beginMs)) / totalMs);
  const lines: string[] = [];
  let fromMs = beginMs;
  for (const [what, stage] of STAGES) {
    const untilMs = timeline[stage] ?? fromMs;
    const from = Math.min(column(fromMs), BAR_WIDTH - 1);
    const bar = '█'.repeat(Math.max(0, column(untilMs) - from)) || '▏';
    lines.push(`${what.padEnd(24)} ${`${untilMs - fromMs} ms`.padStart(8)}  ${' '.repeat(from)}${cyan(bar)}`);
    fromMs = untilMs;
  }
  lines.push(bold(`${'altogether'.padEnd(24)} ${`${startMs(timeline)} ms`.padStart(8)}`));
  return lines;
}

export interface View {
  readonly kernel: string;
  readonly firstProcess: string;
  readonly network: string;
  readonly user: string;
  readonly capabilities: string;
}

export function drawComparison(inside: View, outside: View): string[] {
  const rows: readonly (readonly [string, keyof View])[] = [
    ['kernel', 'kernel'],
    ['process 1', 'firstProcess'],
    ['network', 'network'],
    ['it is user', 'user'],
    ['it may', 'capabilities'],
  ];
  const width = Math.max(12, ...Object.values(inside).map((text: string) => text.length)) + 3;
  return [
    `${' '.repeat(12)}${dim('as it sees it'.padEnd(width))}${dim('as this machine sees it')}`,
    ...rows.map(([what, key]) => `${dim(what.padEnd(12))}${inside[key].padEnd(width)}${outside[key]}`),
  ];
}
