// Ctrl-C reaches all programs of a terminal's foreground at once, also those that are ending a cluster.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '@cloister/kit/clock.ts';
import { poll } from '@cloister/kit/wait.ts';
import { findLocalCluster, startLocalCluster } from './cluster.ts';

const STOP_TIMEOUT_MS = 30_000;
/** As make down does it: minds Ctrl-C by going on. */
const STOPPER = `
  const { findLocalCluster } = await import(process.argv[1]);
  process.on('SIGINT', () => {});
  await (await findLocalCluster(process.argv[2])).stop();`;

test('a cluster is ended although Ctrl-C is pressed while it is', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'cloister-local-'));
  try {
    const cluster = await startLocalCluster({ folder });
    cluster.close();
    const module = join(import.meta.dirname, 'cluster.ts');
    const args = ['--input-type=module', '-e', STOPPER, module, folder];
    const stopper = spawn(process.execPath, args, {
      detached: true, // a group of its own, as a shell makes one
      stdio: 'inherit',
      timeout: STOP_TIMEOUT_MS,
    });
    const ended = new Promise((resolve) => stopper.once('exit', (code, signal) => resolve(code ?? signal)));
    await teardownRuns(folder, stopper);
    process.kill(-(stopper.pid ?? 0), 'SIGINT');
    assert.equal(await ended, 0);
    assert.deepEqual(await cluster.running(), []);
  } finally {
    await (await findLocalCluster(folder))?.forget();
    await rm(folder, { recursive: true, force: true });
  }
});

/** Of what ends a cluster, the part that is a program of its own. */
async function teardownRuns(folder: string, stopper: ChildProcess): Promise<void> {
  const check = async (): Promise<true | undefined> => {
    assert.equal(stopper.exitCode ?? stopper.signalCode, null, 'it ended before anybody interrupted it');
    for (const pid of (await readdir('/proc')).filter((entry) => /^\d+$/.test(entry))) {
      const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
      if (command.includes('teardown.ts') && command.includes(folder)) return true;
    }
    return undefined;
  };
  const makeError = (): Error => new Error('nothing tears the cluster down');
  await poll(check, { clock: systemClock, everyMs: 5, timeoutMs: STOP_TIMEOUT_MS, makeError });
}
