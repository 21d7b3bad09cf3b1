// The client for the configured cluster. Apart from the rest, so that what needs no cluster does not load TLS.
import { CloisterClient } from '@cloister/client/client.ts';
import { loadConfig } from './config.ts';
import { attempt } from './failure.ts';

export async function connect(env: Readonly<Record<string, string | undefined>>): Promise<CloisterClient> {
  return await attempt(
    'find out how to reach a cluster',
    async () => new CloisterClient(await loadConfig(env)),
  );
}
