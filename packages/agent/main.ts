// Runs a node's agent from a configuration file: node main.ts CONFIG.json
import { pathToFileURL } from 'node:url';
import { closeOnSignals } from '@cloister/kit/closing.ts';
import { createLogger } from '@cloister/kit/log.ts';
import { CloisterError, describeError, ERROR_CODES } from '@cloister/model/errors.ts';
import { Agent } from './agent.ts';
import { readSettingsFile } from './settings.ts';

/** Starts, and closes in order on SIGTERM or SIGINT. */
export async function main(args: readonly string[]): Promise<void> {
  const logger = createLogger('agent');
  const agent = await Agent.start(await readSettingsFile(args[0]), { logger });
  closeOnSignals(() => agent.close(), logger);
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
