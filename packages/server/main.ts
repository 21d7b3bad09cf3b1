// Runs a control plane from a configuration file: node main.ts CONFIG.json
import { readFile } from 'node:fs/promises';
import { pathToFileURL } from 'node:url';
import { closeOnSignals } from '@cloister/kit/closing.ts';
import { createLogger } from '@cloister/kit/log.ts';
import { describeError } from '@cloister/model/errors.ts';
import { startServer } from './server.ts';

/** Starts, and closes in order on SIGTERM or SIGINT. */
export async function main(args: readonly string[]): Promise<void> {
  const logger = createLogger('server');
  const [configFile] = args;
  if (!configFile)
    throw new Error('Usage: node main.ts CONFIG.json (packages/server/settings.ts says what is in it)');
  const server = await startServer(JSON.parse(await readFile(configFile, 'utf8')), { logger });
  closeOnSignals(() => server.close(), logger);
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
