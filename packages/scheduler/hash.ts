// Hashes that are the same on every machine and in every run. For order, not for secrets.

/** FNV-1a, 32 bits (Fowler, Noll, Vo). */
export function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  }
  return hash >>> 0;
}

/** Two hashes become one in which every bit depends on every bit of both: the finalizer of MurmurHash3 (Appleby). */
export function mixHashes(a: number, b: number): number {
  let hash = a ^ b;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
