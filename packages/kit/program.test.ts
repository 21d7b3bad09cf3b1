// Other programs: whatever they leave behind, the call returns.
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { ProgramError, run, runUnchecked } from './program.ts';

const limit = { timeout: 20_000 };
/** Prints the pid of a child that keeps the pipes for longer than any test waits. */
const LEAVE_CHILD = 'sleep 60 & echo $!';

function endAfter(t: TestContext, pid: string): void {
  assert.match(pid, /^\d+\n$/);
  t.after(() => process.kill(Number(pid), 'SIGKILL'));
}

test('a program that ended is not waited for because a child of it has its pipes', limit, async (t) => {
  const { exitCode, stdout } = await runUnchecked('sh', ['-c', `${LEAVE_CHILD}; exit 3`], {
    timeoutMs: 15_000,
  });
  endAfter(t, stdout);
  assert.equal(exitCode, 3);
});

test('neither is one that took too long and was killed', limit, async (t) => {
  const error = await run('sh', ['-c', `${LEAVE_CHILD}; wait`], { timeoutMs: 300 }).catch((error) => error);
  assert.ok(error instanceof ProgramError);
  endAfter(t, error.result.stdout);
  assert.equal(error.message, 'sh was killed after 300 ms');
});

test('all that a program wrote is there, however slowly it is read', limit, async () => {
  const { stdout } = await run('sh', ['-c', 'seq 200000'], { timeoutMs: 15_000, maxOutputBytes: 4_000_000 });
  assert.ok(stdout.startsWith('1\n2\n') && stdout.endsWith('\n200000\n'));
});
