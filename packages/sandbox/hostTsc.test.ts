// How fast the time-stamp counter of the host runs.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hostTscKhz, tscKhz } from './hostTsc.ts';

const virtual = 'model name\t: AMD EPYC\ncpu MHz\t\t: 2596.132\nflags\t\t: fpu tsc hypervisor\n';
const bare =
  'model name\t: Intel(R) Xeon(R) Gold 6240 CPU @ 2.60GHz\ncpu MHz\t\t: 3412.007\nflags\t\t: fpu tsc\n';

test('in a virtual machine the rate is what the kernel shows, to the kHz', () => {
  assert.equal(tscKhz(virtual, 0, 0), 2_596_132);
});

test('on a scaling processor the speed of the moment is not believed', () => {
  assert.equal(tscKhz(bare, 2_594_000, 3412), 2_594_000);
  assert.equal(tscKhz(bare, Number.NaN, 3412), 2_600_000);
});

test('something usable comes out whatever the host shows', async () => {
  assert.equal(tscKhz('', 0, 0), 2_000_000);
  assert.equal(tscKhz('', Number.NaN, 1800), 1_800_000);
  const khz = await hostTscKhz();
  assert.ok(Number.isSafeInteger(khz) && khz > 500_000 && khz < 10_000_000, `${khz}`);
});
