// Looking at a running machine from both its sides: asking it, and asking the kernel of this host.
import { readdir, readFile } from 'node:fs/promises';
import { release } from 'node:os';
import type { CloisterClient } from '@cloister/client/client.ts';
import { systemClock } from '@cloister/kit/clock.ts';
import { poll } from '@cloister/kit/wait.ts';
import { cgroupMounts, cgroupProcesses, childCgroups } from '@cloister/sandbox/jailCgroup.ts';
import { findProcess, isAlive, type JailProcess } from '@cloister/sandbox/jailProcess.ts';
import type { View } from './drawing.ts';

const GONE_TIMEOUT_MS = 10_000;
const QUESTIONS = 'uname -r; cat /proc/1/comm; ls -x /sys/class/net; id -u; grep CapEff /proc/self/status';

export async function lookInside(
  client: CloisterClient,
  allocationId: string,
  signal: AbortSignal,
): Promise<View> {
  const stream = await client.exec(allocationId, { command: ['sh', '-c', QUESTIONS] }, { signal });
  stream.stderr.resume();
  stream.stdin.end();
  const said: Buffer[] = [];
  for await (const chunk of stream.stdout) said.push(chunk as Buffer);
  await stream.exit;
  const [kernel = '?', first = '?', network = '?', uid = '?', status = '?'] = Buffer.concat(said)
    .toString()
    .split('\n');
  return {
    kernel: `Linux ${kernel}`,
    firstProcess: first,
    network: network.trim(),
    user: uid === '0' ? 'root' : uid,
    capabilities: countCapabilities(status),
  };
}

/** `cgroupPath`: under which there is this one machine. */
export async function lookOutside(cgroupPath: string): Promise<View & { readonly vmm: JailProcess }> {
  const mounts = await cgroupMounts();
  const names = await childCgroups(mounts, cgroupPath);
  const pids = await Promise.all(names.map((name) => cgroupProcesses(mounts, `${cgroupPath}/${name}`)));
  const [pid] = pids.flat();
  const vmm = pid === undefined ? undefined : await findProcess(pid);
  if (!vmm) throw new Error(`there is no machine under the cgroup ${cgroupPath}`);
  const status = await readFile(`/proc/${vmm.pid}/status`, 'utf8');
  const field = (name: string): string => new RegExp(`^${name}:\\s+(\\S+)`, 'm').exec(status)?.[1] ?? '?';
  const filter = field('Seccomp') === '2' ? ', filtered system calls' : '';
  return {
    vmm,
    kernel: `Linux ${release()}`,
    firstProcess: (await readFile('/proc/1/comm', 'utf8')).trim(),
    network: (await readdir('/sys/class/net')).join(' '),
    user: `${field('Uid')}, process ${vmm.pid} (${field('Name')})`,
    capabilities: countCapabilities(/^CapEff:.*$/m.exec(status)?.[0] ?? '') + filter,
  };
}

/** Milliseconds until its process has ended, and until no cgroup is left either. */
export async function timeUntilGone(
  vmm: JailProcess,
  cgroupPath: string,
  signal: AbortSignal,
): Promise<[processMs: number, cgroupMs: number]> {
  const startedMs = performance.now();
  const mounts = await cgroupMounts();
  const until = async (isSo: () => Promise<boolean>): Promise<number> => {
    await poll(async () => ((await isSo()) ? true : undefined), {
      clock: systemClock,
      everyMs: 1,
      timeoutMs: GONE_TIMEOUT_MS,
      makeError: () => new Error(`process ${vmm.pid} is not gone after ${GONE_TIMEOUT_MS} ms`),
      signal,
    });
    return Math.round(performance.now() - startedMs);
  };
  const processMs = await until(async () => !(await isAlive(vmm)));
  return [processMs, await until(async () => (await childCgroups(mounts, cgroupPath)).length === 0)];
}

/** Of a "CapEff:" line of /proc/PID/status. */
function countCapabilities(line: string): string {
  const bits = BigInt(`0x${/[0-9a-f]{16}/.exec(line)?.[0] ?? '0'}`).toString(2);
  const count = bits.replaceAll('0', '').length;
  return count === 0 ? 'nothing: no capability' : `everything: ${count} capabilities`;
}
