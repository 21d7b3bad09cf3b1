// Who this node is: a key that never leaves it, and the certificate that the cluster gave it for a join token.
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { readFileIfThere, writeFileDurably } from '@cloister/kit/file.ts';
import type { Logger } from '@cloister/kit/log.ts';
import { joinCluster } from '@cloister/link/join.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { newAgentInstanceId } from '@cloister/model/ids.ts';
import type { Settings } from './settings.ts';

export interface Identity {
  readonly nodeId: string;
  readonly instanceId: string;
  readonly nodeName: string;
  /** host:port of the link. */
  readonly linkAddress: string;
  readonly caPem: string;
  readonly certificatePem: string;
  readonly keyPem: string;
}

const KEYS = [
  'nodeId',
  'instanceId',
  'nodeName',
  'linkAddress',
  'caPem',
  'certificatePem',
  'keyPem',
] as const;

/**
 * The identity on the disk; without one, joins. Throws the server's join.* error, or `join.token-invalid` when there is
 * no token to join with.
 */
export async function loadOrJoin(settings: Settings, logger: Logger): Promise<Identity> {
  const folder = join(settings.stateFolder, 'identity');
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const path = join(folder, 'identity.json');
  const known = await readFileIfThere(path);
  if (known !== undefined) return checkIdentity(known, path, settings.nodeName);

  const instanceId = await instanceIdOf(join(folder, 'instance-id'));
  const joined = await joinCluster({
    apiUrl: settings.apiUrl,
    caPem: await readFile(settings.caFile, 'utf8'),
    token: await readToken(settings),
    nodeName: settings.nodeName,
    instanceId,
    labels: settings.labels,
  });
  const { nodeId, linkAddress, caPem, certificatePem, keyPem } = joined;
  const { nodeName } = settings;
  const identity = { nodeId, instanceId, nodeName, linkAddress, caPem, certificatePem, keyPem };
  await writeFileDurably(path, JSON.stringify(identity));
  if (settings.joinTokenFile) await rm(settings.joinTokenFile, { force: true }); // it is used up
  logger.info({ nodeId, nodeName }, 'joined the cluster');
  return identity;
}

function checkIdentity(text: string, path: string, nodeName: string): Identity {
  const value = parseIfJson(text) as Partial<Record<(typeof KEYS)[number], unknown>> | null | undefined;
  if (!KEYS.every((key) => typeof value?.[key] === 'string'))
    throw new CloisterError('internal', `${path} is damaged. Remove it and join again with a new token.`);
  const identity = value as Identity;
  if (identity.nodeName !== nodeName) {
    const message = `This folder belongs to the node "${identity.nodeName}", and the settings say "${nodeName}".`;
    throw new CloisterError('state.wrong', message);
  }
  return identity;
}

function parseIfJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Made before the first join: whoever was cut off in the middle of one is still the same. */
async function instanceIdOf(path: string): Promise<string> {
  const known = await readFileIfThere(path);
  if (known !== undefined) return known.trim();
  const made = newAgentInstanceId();
  await writeFileDurably(path, made);
  return made;
}

async function readToken({ joinTokenFile }: Settings): Promise<string> {
  const token = joinTokenFile === undefined ? undefined : await readFileIfThere(joinTokenFile);
  if (token === undefined || token.trim() === '') {
    const where = joinTokenFile ?? 'joinTokenFile in the settings';
    throw new CloisterError(
      'join.token-invalid',
      `This machine is not a node yet, and there is no join token: ${where}.`,
    );
  }
  return token.trim();
}
