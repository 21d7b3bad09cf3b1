// A little room on containerd's disk, held by a file. containerd writes to its database to delete, so on a disk without
// a free byte it can delete nothing, not even what filled the disk. Giving the reserve up lets it.
import { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { isDiskFull } from './containerdError.ts';

const RESERVE_BYTES = 1_048_576;

export class DiskReserve {
  readonly #path: string;
  #spending: Promise<void> = Promise.resolve();

  constructor(folder: string) {
    this.#path = join(folder, 'cloister-reserve');
  }

  /** On a disk that is full already there is none, until spend() has made room. */
  async fill(): Promise<void> {
    const file = await open(this.#path, 'w', 0o600);
    try {
      await file.write(Buffer.alloc(RESERVE_BYTES));
      await file.sync();
    } catch (error) {
      if (!isDiskFull(error)) throw error;
    } finally {
      await file.close();
    }
  }

  /** Runs `cleanup` with the reserve given up, and fills it again. One at a time. */
  async spend(cleanup: () => Promise<void>): Promise<void> {
    const spent = this.#spending.then(async () => {
      await rm(this.#path, { force: true });
      await cleanup().finally(async () => await this.fill());
    });
    this.#spending = spent.catch(() => {});
    await spent;
  }
}
