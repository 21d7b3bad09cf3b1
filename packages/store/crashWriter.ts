// The child of crash.test.ts: writes for ever, many at once, and says on standard output what was acknowledged.
import { writeSync } from 'node:fs';
import { openEmbeddedStore } from './embedded.ts';

const WRITERS = 16;

const folder = process.argv[2];
if (folder === undefined) throw new Error('Say which folder to write to.');
const store = await openEmbeddedStore({ folder });

async function write(key: string): Promise<never> {
  let value = Number((await store.get(`left/${key}`))?.value ?? 0);
  for (;;) {
    value += 1;
    const { revision } = await store.txn({
      then: [
        { type: 'put', key: `left/${key}`, value: `${value}` },
        { type: 'deleteRange', prefix: `passing/${key}/` },
        ...(value % 3 === 0
          ? [{ type: 'put' as const, key: `other/${key}/${value % 7}`, value: 'v'.repeat(value % 3_000) }]
          : []),
        { type: 'put', key: `right/${key}`, value: `${value}` },
      ],
    });
    // At once and not through a stream: what is acknowledged must be out before the next moment, which may be the last.
    writeSync(1, `${key} ${value} ${revision}\n`);
    await store.txn({ then: [{ type: 'put', key: `passing/${key}/${value}`, value: 'x' }] });
  }
}

await Promise.all(Array.from({ length: WRITERS }, (_, n) => write(`w${n}`)));
