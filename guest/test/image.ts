// Images made on the spot: busybox and a few files, as a block image.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

/** A folder tree made into a block image: file contents by path; "-> target" makes a symbolic link. */
export function makeImage(
  path: string,
  type: 'erofs' | 'squashfs',
  files: Readonly<Record<string, { text: string; mode?: number }>>,
): void {
  const folder = mkdtempSync(join(tmpdir(), 'guest-image-'));
  try {
    for (const name of ['bin', 'etc', 'proc', 'sys', 'dev', 'tmp', 'run', 'home'])
      mkdirSync(join(folder, name));
    execFileSync('cp', ['/bin/busybox', join(folder, 'bin/busybox')]);
    for (const name of execFileSync('/bin/busybox', ['--list'], { encoding: 'utf8' }).trim().split('\n')) {
      if (!existsSync(join(folder, 'bin', name))) symlinkSync('busybox', join(folder, 'bin', name));
    }
    for (const [name, { text, mode }] of Object.entries(files)) {
      mkdirSync(dirname(join(folder, name)), { recursive: true });
      if (text.startsWith('-> ')) symlinkSync(text.slice(3), join(folder, name));
      else writeFileSync(join(folder, name), text, { mode: mode ?? 0o644 });
    }
    if (type === 'erofs') execFileSync('mkfs.erofs', ['--all-root', path, folder], { stdio: 'ignore' });
    else
      execFileSync('mksquashfs', [folder, path, '-quiet', '-no-progress', '-all-root', '-comp', 'lz4'], {
        stdio: 'ignore',
      });
  } finally {
    rmSync(folder, { recursive: true });
  }
}
