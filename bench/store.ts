// How fast the embedded store is: durable puts with some in flight, gets, and a watch that reads the history.
//   node bench/store.ts [FOLDER]     the folder decides which disk is measured; default: the temporary one
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openEmbeddedStore } from '@cloister/store/embedded.ts';
import { type Figure, report } from './report.ts';

const VALUE = 'v'.repeat(300);
const KEYS = 10_000;
const figures: Figure[] = [];

async function measure(
  name: string,
  count: number,
  inFlight: number,
  work: (n: number) => Promise<unknown>,
): Promise<void> {
  const latenciesMs: number[] = [];
  let next = 0;
  const startedMs = performance.now();
  await Promise.all(
    Array.from({ length: inFlight }, async () => {
      for (let n = next++; n < count; n = next++) {
        const beforeMs = performance.now();
        await work(n);
        latenciesMs.push(performance.now() - beforeMs);
      }
    }),
  );
  const perSecond = Math.round(count / ((performance.now() - startedMs) / 1000));
  latenciesMs.sort((a, b) => a - b);
  const p99Ms = latenciesMs[Math.floor(latenciesMs.length * 0.99)] ?? 0;
  figures.push({ name, value: perSecond, unit: '/s' }, { name: `${name}, p99`, value: p99Ms, unit: 'ms' });
}

const folder = await mkdtemp(join(process.argv[2] ?? tmpdir(), 'cloister-bench-'));
const store = await openEmbeddedStore({ folder });
const put = (n: number) => store.txn({ then: [{ type: 'put', key: `k/${n % KEYS}`, value: VALUE }] });
const putHundred = (n: number) =>
  store.txn({
    then: Array.from({ length: 100 }, (_, i) => ({
      type: 'put',
      key: `k/${(n * 100 + i) % KEYS}`,
      value: VALUE,
    })),
  });
try {
  await measure('put, 1 in flight', 500, 1, put);
  await measure('put, 64 in flight', 20_000, 64, put);
  await measure('put, 512 in flight', 40_000, 512, put);
  await measure('txn of 100 puts, 4 in flight', 500, 4, putHundred);
  await measure('get', 100_000, 1, (n) => store.get(`k/${n % KEYS}`));
  await measure('range of 1,000', 200, 1, () => store.range({ prefix: 'k/', limit: 1_000 }));
  const { revision } = await store.status();
  const watch = store.watch({ prefix: '', fromRevision: 1 })[Symbol.asyncIterator]();
  await measure('watched revision, from history', revision, 1, () => watch.next());
} finally {
  await store.close();
  await rm(folder, { recursive: true });
}
await report('store', figures);
