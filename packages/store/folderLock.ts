// One process a folder. LMDB itself lets many processes open the same files, each with its own idea of leases.
//
// Node has no flock(), but its SQLite takes POSIX record locks: the kernel drops them however the process ends, so
// no lock is ever left behind, and SQLite also refuses a second opening inside one process.
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { CloisterError } from '@cloister/model/errors.ts';

export interface FolderLock {
  release(): void;
}

/** Takes the folder, which exists, or throws `store.locked` at once. */
export function lockFolder(folder: string): FolderLock {
  const database = new DatabaseSync(join(folder, 'owner.lock'), { timeout: 0 });
  try {
    database.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE');
  } catch (error) {
    database.close();
    throw new CloisterError('store.locked', `Could not open the store in ${folder}: it is open already.`, {
      cause: error,
    });
  }
  return { release: () => database.close() };
}
