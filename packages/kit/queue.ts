// A bounded queue between one who has things and one who takes them, one by one.
export class BoundedQueue<Item> implements AsyncIterable<Item> {
  readonly #items: Item[] = [];
  readonly #capacity: number;
  #closed = false;
  #takers: ((result: IteratorResult<Item>) => void)[] = [];
  #givers: (() => void)[] = [];

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get size(): number {
    return this.#items.length;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** False when the queue is full or closed: the caller must do something about it. */
  tryPush(item: Item): boolean {
    if (this.#closed) return false;
    const taker = this.#takers.shift();
    if (taker) {
      taker({ value: item, done: false });
      return true;
    }
    if (this.#items.length >= this.#capacity) return false;
    this.#items.push(item);
    return true;
  }

  /** Waits for room. False when the queue is closed. */
  async push(item: Item): Promise<boolean> {
    while (!this.tryPush(item)) {
      if (this.#closed) return false;
      await new Promise<void>((resolve) => this.#givers.push(resolve));
    }
    return true;
  }

  /** No more items; takers get what is left, then the end. */
  close(): void {
    this.#closed = true;
    if (this.#items.length === 0)
      for (const taker of this.#takers.splice(0)) taker({ value: undefined, done: true });
    for (const giver of this.#givers.splice(0)) giver();
  }

  async take(): Promise<IteratorResult<Item>> {
    const item = this.#items.shift();
    if (item !== undefined) {
      this.#givers.shift()?.();
      return { value: item, done: false };
    }
    if (this.#closed) return { value: undefined, done: true };
    return await new Promise((resolve) => this.#takers.push(resolve));
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Item> {
    for (;;) {
      const next = await this.take();
      if (next.done) return;
      yield next.value;
    }
  }
}
