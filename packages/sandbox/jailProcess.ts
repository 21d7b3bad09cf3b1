// A process named so that it cannot be mistaken for another: a process id alone is used again by the kernel.
import { readFileIfThere } from '@cloister/kit/file.ts';

export interface JailProcess {
  readonly pid: number;
  /** When the kernel started it, in clock ticks since the host's boot: field 22 of /proc/PID/stat. */
  readonly startTicks: number;
}

/**
 * The process that has this id now, or undefined when there is none. A zombie has ended, once its last thread has: until
 * then its files are open.
 */
export async function findProcess(pid: number): Promise<JailProcess | undefined> {
  const stat = await readStat(pid);
  if (stat === undefined) return undefined;
  // The second field, the program's name, may hold spaces and parentheses; the third, the state, follows its last one.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const startTicks = Number(fields[19]);
  const threads = Number(fields[17]);
  const hasEnded = fields[0] === 'X' || (fields[0] === 'Z' && threads <= 1);
  if (hasEnded || !Number.isSafeInteger(startTicks)) return undefined;
  return { pid, startTicks };
}

export async function isAlive(process: JailProcess): Promise<boolean> {
  return (await findProcess(process.pid))?.startTicks === process.startTicks;
}

/** Sends SIGKILL to this very process. False when it has ended already. */
export async function killProcess(target: JailProcess): Promise<boolean> {
  if (!(await isAlive(target))) return false;
  try {
    process.kill(target.pid, 'SIGKILL');
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw error;
  }
}

async function readStat(pid: number): Promise<string | undefined> {
  try {
    return await readFileIfThere(`/proc/${pid}/stat`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return undefined; // it ended while we were reading
    throw error;
  }
}
