// Runs a node's agent from a configuration file: node main.ts CONFIG.json
import { pathToFileURL } from 'node:url';
import { createLogger } from '@cloister/kit/log.ts';
import { withTimeout } from '@cloister/kit/wait.ts';
import { CloisterError, describeError, ERROR_CODES } from '@cloister/model/errors.ts';
import { Agent } from './agent.ts';
import { readSettingsFile } from './settings.ts';

const CLOSE_TIMEOUT_MS = 15_000;

/** Starts, and closes in order on SIGTERM or SIGINT. */
export async function main(args: readonly string[]): Promise<void> {
  const logger = createLogger('agent');
  const agent = await Agent.start(await readSettingsFile(args[0]), { logger });
  let isClosing = false;
  const close = (signal: string): void => {
    if (isClosing) return;
    isClosing = true;
    logger.info({ signal }, 'closing; sandboxes run on');
    const late = () => new Error(`closing took longer than ${CLOSE_TIMEOUT_MS} ms`);
    withTimeout(agent.close(), CLOSE_TIMEOUT_MS, late).then(
      () => process.exit(0),
      (error: unknown) => {
        logger.error({ error: describeError(error) }, 'could not close in order');
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', () => close('SIGTERM'));
  process.on('SIGINT', () => close('SIGINT'));
  await agent.welcomed;
  // One line on standard output, for whoever started us and waits.
  process.stdout.write(`${JSON.stringify({ nodeId: agent.nodeId })}\n`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main(process.argv.slice(2)).catch((error: unknown) => {
    const hint = error instanceof CloisterError ? ` ${ERROR_CODES[error.code].hint}` : '';
    process.stderr.write(`cloister agent: ${describeError(error)}${hint}\n`);
    process.exit(1);
  });
}
