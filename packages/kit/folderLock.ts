// One process a folder: for whoever keeps files that a second copy of the program would spoil.
//
// Node has no flock(), but its SQLite takes POSIX record locks: the kernel drops them however the process ends, so
// no lock is ever left behind, and SQLite also refuses a second opening inside one process.
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { CloisterError } from '@cloister/model/errors.ts';

export interface FolderLock {
  release(): void;
}

/** SQLite's SQLITE_BUSY; the higher bits of a result code say more. */
const SQLITE_BUSY = 5;

/**
 * Takes the folder, which exists, without waiting. When somebody has it, throws `folder.locked` that says `ifTaken`:
 * what that means, only the caller knows. A folder that cannot be locked at all is another error, and says so.
 */
export function lockFolder(folder: string, ifTaken: string): FolderLock {
  let database: DatabaseSync | undefined;
  try {
    database = new DatabaseSync(join(folder, 'owner.lock'), { timeout: 0 });
    database.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE');
  } catch (cause) {
    database?.close();
    if (isBusy(cause)) throw new CloisterError('folder.locked', ifTaken, { cause });
    throw new Error(`Could not lock the folder ${folder}`, { cause });
  }
  const taken = database;
  return { release: () => taken.close() };
}

function isBusy(error: unknown): boolean {
  return error instanceof Error && 'errcode' in error && (Number(error.errcode) & 0xff) === SQLITE_BUSY;
}
