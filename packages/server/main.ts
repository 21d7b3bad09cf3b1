// Runs a control plane from a configuration file: node main.ts CONFIG.json
import { readFile } from 'node:fs/promises';
import { pathToFileURL } from 'node:url';
import { createLogger } from '@cloister/kit/log.ts';
import { withTimeout } from '@cloister/kit/wait.ts';
import { describeError } from '@cloister/model/errors.ts';
import { startServer } from './server.ts';

const CLOSE_TIMEOUT_MS = 15_000;

/** Starts, and closes in order on SIGTERM or SIGINT. */
export async function main(args: readonly string[]): Promise<void> {
  const logger = createLogger('server');
  const [configFile] = args;
  if (!configFile)
    throw new Error('Usage: node main.ts CONFIG.json (packages/server/settings.ts says what is in it)');
  const server = await startServer(JSON.parse(await readFile(configFile, 'utf8')), { logger });
  let closing = false;
  const close = (signal: string): void => {
    if (closing) return;
    closing = true;
    logger.info({ signal }, 'closing');
    const late = () => new Error(`closing took longer than ${CLOSE_TIMEOUT_MS} ms`);
    withTimeout(server.close(), CLOSE_TIMEOUT_MS, late).then(
      () => process.exit(0),
      (error: unknown) => {
        logger.error({ error: describeError(error) }, 'could not close in order');
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', () => close('SIGTERM'));
  process.on('SIGINT', () => close('SIGINT'));
  // One line on standard output, for whoever started us on port 0.
  process.stdout.write(
    `${JSON.stringify({ apiAddress: server.apiAddress, linkAddress: server.linkAddress })}\n`,
  );
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main(process.argv.slice(2)).catch((error: unknown) => {
    process.stderr.write(`cloister server: ${describeError(error)}\n`);
    process.exit(1);
  });
}
