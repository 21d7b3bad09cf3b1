// A writer of tar archives (ustar with pax headers), for tests: it writes what it is told, so that they can make the
// archives that no honest program makes.

export interface TarEntry {
  /** As it is written: "../x" and "/x" too. Bytes, or text in UTF-8. */
  readonly path: string | Buffer;
  readonly type?: 'file' | 'folder' | 'symlink' | 'hardlink' | 'character' | 'block' | 'fifo';
  readonly content?: string | Buffer;
  /** Default 0o644, of folders 0o755. */
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  /** Of a symlink or a hard link. */
  readonly target?: string;
  readonly device?: { readonly major: number; readonly minor: number };
  readonly xattrs?: Readonly<Record<string, string>>;
  /** Seconds since the epoch. Default 1,700,000,000. */
  readonly mtimeSeconds?: number;
}

const BLOCK_BYTES = 512;
const MAX_OCTAL_ID = 0o7777777;
const TYPE_FLAGS = {
  file: '0',
  hardlink: '1',
  symlink: '2',
  character: '3',
  block: '4',
  folder: '5',
  fifo: '6',
} as const;

export function writeTar(entries: readonly TarEntry[]): Buffer {
  return Buffer.concat([...entries.flatMap(writeEntry), Buffer.alloc(2 * BLOCK_BYTES)]);
}

function writeEntry(entry: TarEntry): Buffer[] {
  const path = Buffer.from(entry.path);
  const content = Buffer.from(entry.content ?? '');
  const pax: [string, Buffer][] = Object.entries(entry.xattrs ?? {}).map(([name, value]) => [
    `SCHILY.xattr.${name}`,
    Buffer.from(value, 'latin1'),
  ]);
  if (path.length > 100) pax.push(['path', path]);
  if ((entry.target?.length ?? 0) > 100) pax.push(['linkpath', Buffer.from(entry.target ?? '')]);
  if ((entry.uid ?? 0) > MAX_OCTAL_ID) pax.push(['uid', Buffer.from(String(entry.uid))]);
  if ((entry.gid ?? 0) > MAX_OCTAL_ID) pax.push(['gid', Buffer.from(String(entry.gid))]);
  const own = [header(path, content.length, TYPE_FLAGS[entry.type ?? 'file'], entry), padded(content)];
  if (pax.length === 0) return own;
  const records = Buffer.concat(pax.map(([name, value]) => paxRecord(name, value)));
  return [header(Buffer.from('pax'), records.length, 'x', { path: 'pax' }), padded(records), ...own];
}

function header(path: Buffer, size: number, flag: string, entry: TarEntry): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES);
  const octal = (value: number, offset: number, length: number): void => {
    block.write(value.toString(8).padStart(length - 1, '0'), offset, length - 1, 'latin1');
  };
  path.copy(block, 0, 0, 100);
  octal(entry.mode ?? (entry.type === 'folder' ? 0o755 : 0o644), 100, 8);
  octal(Math.min(entry.uid ?? 0, MAX_OCTAL_ID), 108, 8);
  octal(Math.min(entry.gid ?? 0, MAX_OCTAL_ID), 116, 8);
  octal(size, 124, 12);
  octal(entry.mtimeSeconds ?? 1_700_000_000, 136, 12);
  block.fill(' ', 148, 156);
  block.write(flag, 156, 'latin1');
  block.write((entry.target ?? '').slice(0, 100), 157, 'utf8');
  block.write('ustar\x0000', 257, 'latin1');
  octal(entry.device?.major ?? 0, 329, 8);
  octal(entry.device?.minor ?? 0, 337, 8);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

/** "LENGTH NAME=VALUE\n", where the length counts itself. */
function paxRecord(name: string, value: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${name}=`), value, Buffer.from('\n')]);
  let length = rest.length;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

function padded(content: Buffer): Buffer {
  return Buffer.concat([content, Buffer.alloc((BLOCK_BYTES - (content.length % BLOCK_BYTES)) % BLOCK_BYTES)]);
}
