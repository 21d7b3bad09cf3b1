// What a node does with its work when it has been without a session for long.
//
// By default nothing: a control plane that is away must not end what runs. It gives a lost node up after its
// nodeDownAfterMs (30 s); batch work is then lost and never done twice, but an instance of a service is started
// elsewhere, and runs twice until this node is back and is told to end it. Who cannot have that sets fenceAfterMs to 15 s
// (how long a broken connection may go unnoticed here) less than nodeDownAfterMs: then this node ends its services itself
// before others begin them, and pays with an outage of them whenever the control plane is away for as long.
import type { Clock } from '@cloister/kit/clock.ts';

export class Fence {
  readonly #afterMs: number;
  readonly #clock: Clock;
  readonly #onFence: () => void;
  #waiting: AbortController | undefined;

  /** `afterMs` 0: never. Begins without a session. */
  constructor(options: { readonly afterMs: number; readonly clock: Clock; readonly onFence: () => void }) {
    this.#afterMs = options.afterMs;
    this.#clock = options.clock;
    this.#onFence = options.onFence;
    this.sessionLost();
  }

  sessionBegan(): void {
    this.#waiting?.abort();
    this.#waiting = undefined;
  }

  /** Again and again is the same loss. */
  sessionLost(): void {
    if (this.#afterMs === 0 || this.#waiting) return;
    const waiting = new AbortController();
    this.#waiting = waiting;
    this.#clock.sleep(this.#afterMs, waiting.signal).then(
      () => this.#onFence(),
      () => {}, // there is a session again
    );
  }

  close(): void {
    this.#waiting?.abort();
  }
}
