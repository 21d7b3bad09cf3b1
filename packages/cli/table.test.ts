// Tables fit, whatever is in them.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { renderTable, truncate, widthOf } from './table.ts';

describe('renderTable', () => {
  it('aligns columns and pads no line at its end', () => {
    const text = renderTable(
      [{ title: 'NAME' }, { title: 'N', isRight: true }, { title: 'LAST' }],
      [
        ['a', '1', 'x'],
        ['longer', '200', ''],
      ],
      { colour: false },
    );
    assert.equal(text, 'NAME      N  LAST\na         1  x\nlonger  200\n');
  });

  it('cuts the elastic columns first', () => {
    const text = renderTable(
      [{ title: 'ID' }, { title: 'IMAGE', isElastic: true }],
      [['0123456789', 'registry/name:tag']],
      { width: 20, colour: false },
    );
    assert.equal(text, 'ID          IMAGE\n0123456789  registr…\n');
  });

  it('paints a cell without counting the paint', () => {
    const text = renderTable([{ title: 'A' }, { title: 'B' }], [[{ text: 'up', colour: 'green' }, 'x']], {
      colour: true,
    });
    assert.equal(text.split('\n')[1], '\x1b[32mup\x1b[0m  x');
  });

  it('is never wider than the terminal, and never lets a control character through', () => {
    const cell = fc.string({ unit: 'binary', maxLength: 60 });
    fc.assert(
      fc.property(
        fc.array(fc.tuple(cell, cell, cell), { maxLength: 8 }),
        fc.integer({ min: 20, max: 120 }),
        (rows, width) => {
          const lines = renderTable(
            [{ title: 'ONE' }, { title: 'TWO', isElastic: true }, { title: 'THREE' }],
            rows,
            { width, colour: false },
          ).split('\n');
          assert.equal(lines.length, rows.length + 2);
          for (const line of lines) {
            assert.ok(widthOf(line) <= width, `${widthOf(line)} > ${width}`);
            // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
            assert.doesNotMatch(line, /[\u0000-\u001f\u007f-\u009f]/);
          }
        },
      ),
    );
  });

  it('knows that some characters are two columns wide', () => {
    assert.equal(widthOf('日本'), 4);
    assert.equal(truncate('日本語', 4), '日…');
  });
});
