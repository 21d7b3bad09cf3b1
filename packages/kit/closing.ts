// Ending a program in order: when it is told to, once, and not for ever.
import { describeError } from '@cloister/model/errors.ts';
import type { Logger } from './log.ts';
import { withTimeout } from './wait.ts';

const CLOSE_TIMEOUT_MS = 15_000;

/** On SIGTERM or SIGINT: `close`, then exit with 0; with 1 when that fails, or takes longer than 15 s. */
export function closeOnSignals(close: () => Promise<void>, logger: Logger): void {
  let isClosing = false;
  const begin = (signal: string): void => {
    if (isClosing) return;
    isClosing = true;
    logger.info({ signal }, 'closing');
    const late = () => new Error(`closing took longer than ${CLOSE_TIMEOUT_MS} ms`);
    withTimeout(close(), CLOSE_TIMEOUT_MS, late).then(
      () => process.exit(0),
      (error: unknown) => {
        logger.error({ error: describeError(error) }, 'could not close in order');
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', () => begin('SIGTERM'));
  process.on('SIGINT', () => begin('SIGINT'));
}
