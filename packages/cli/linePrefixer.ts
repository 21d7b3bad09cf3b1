// Puts something before each line of a stream of bytes that comes in pieces, whatever the bytes are.
const NEWLINE = 0x0a;

export class LinePrefixer {
  #isAtStart = true;

  /** The piece with the prefix before every line that begins in it. */
  add(bytes: Buffer, prefix: string): Buffer {
    const parts: Buffer[] = [];
    const head = Buffer.from(prefix);
    for (let start = 0; start < bytes.length; ) {
      const newline = bytes.indexOf(NEWLINE, start);
      const end = newline < 0 ? bytes.length : newline + 1;
      if (this.#isAtStart) parts.push(head);
      parts.push(bytes.subarray(start, end));
      this.#isAtStart = newline >= 0;
      start = end;
    }
    return Buffer.concat(parts);
  }
}
