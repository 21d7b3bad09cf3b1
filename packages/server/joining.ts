// How machines become nodes: an operator makes a join token, and whoever brings it, once and in time, gets a
// certificate. Times are by this server's clock. Every refusal is an event for operators.
import { randomBytes } from 'node:crypto';
import { issueNodeCertificate, type KeyAndCertificate } from '@cloister/link/pki.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { type AgentInstanceId, type NodeId, newNodeId } from '@cloister/model/ids.ts';
import type { NodeRole } from '@cloister/model/node.ts';
import type { JoinReply, JoinRequest, JoinTokenSchema } from '@cloister/model/tenant.ts';
import type { Static } from 'typebox';
import type { Refusals } from './events.ts';
import { keys } from './keys.ts';
import type { JoinTokenRecord, NodeRecord } from './records.ts';
import { newSecret, parseSecret, secretMatches } from './secrets.ts';
import type { Cluster } from './settings.ts';
import type { ClusterState } from './state.ts';

const MAX_JOIN_TOKENS = 10_000;
/** Tokens are kept this long after their end, so that whoever uses one late is told so. */
const KEEP_ENDED_MS = 86_400_000;
const FORGET_BATCH = 100;

export async function createJoinToken(
  cluster: Cluster,
  request: { readonly role?: NodeRole; readonly nodeName?: string; readonly ttlMs: number },
): Promise<Static<typeof JoinTokenSchema>> {
  const id = randomBytes(10).toString('hex');
  const secret = newSecret('clj', id);
  const { ttlMs, role = 'worker', nodeName } = request;
  const expiresAt = cluster.clock.now() + ttlMs;
  const bound = nodeName === undefined ? {} : { nodeName };
  await cluster.committer.commit((state, change) => {
    const ended = [...state.joinTokens.values()].filter(
      ({ record }) => record.expiresAt + KEEP_ENDED_MS < change.nowMs,
    );
    for (const { record, modRevision } of ended.slice(0, FORGET_BATCH))
      change.delete(keys.joinToken(record.id), modRevision);
    if (state.joinTokens.size - ended.length >= MAX_JOIN_TOKENS) {
      throw new CloisterError(
        'limit.exceeded',
        `Could not make a join token: ${MAX_JOIN_TOKENS} are there already.`,
      );
    }
    const record: JoinTokenRecord = { id, secretHash: secret.hash, role, expiresAt, ...bound };
    change.put(keys.joinToken(id), record, 0);
    return true;
  });
  return { secret: secret.text, role, expiresAt, ...bound };
}

export interface JoinParts {
  readonly cluster: Cluster;
  readonly refusals: Refusals;
  readonly authority: KeyAndCertificate;
  readonly linkAddress: string;
}

/** `from`: the caller's address, for the event of a refusal. */
export async function join(parts: JoinParts, request: JoinRequest, from: string): Promise<JoinReply> {
  const { cluster, authority } = parts;
  try {
    const token = checkToken(cluster, request);
    // Signed before the token is spent: a request that cannot be signed does not cost the operator a token.
    const nodeId = knownNode(cluster.follower.state, request) ?? newNodeId();
    const certificatePem = await issueNodeCertificate(authority, request.csrPem, nodeId);
    await admitNode(cluster, request, token.id, nodeId);
    return { nodeId, certificatePem, caPem: authority.certificatePem, linkAddress: parts.linkAddress };
  } catch (error) {
    if (error instanceof CloisterError) {
      const message = `From ${from}: ${error.message}`;
      await parts.refusals.tell({
        type: 'node.join-refused',
        subject: request.nodeName,
        name: request.nodeName,
        message,
      });
    }
    throw error;
  }
}

function checkToken(cluster: Cluster, request: JoinRequest): JoinTokenRecord {
  const invalid = new CloisterError(
    'join.token-invalid',
    'Could not join: this join token was not made by this cluster.',
  );
  const parsed = parseSecret('clj', request.token);
  const record = parsed && cluster.follower.state.joinTokens.get(parsed.id)?.record;
  if (!secretMatches(parsed?.secret ?? '', record?.secretHash) || !record) throw invalid;
  if (record.usedBy)
    throw new CloisterError('join.token-used', 'Could not join: this join token has been used.');
  if (record.expiresAt <= cluster.clock.now()) {
    const at = new Date(record.expiresAt).toISOString();
    throw new CloisterError('join.token-expired', `Could not join: this join token expired at ${at}.`);
  }
  if (record.nodeName !== undefined && record.nodeName !== request.nodeName) {
    throw new CloisterError(
      'join.token-invalid',
      `Could not join: this token is for another node than ${request.nodeName}.`,
    );
  }
  return record;
}

/** The node that this very agent joined as before; its identity stays when it joins again. */
function knownNode(state: ClusterState, request: JoinRequest): NodeId | undefined {
  for (const { record } of state.nodes.values()) {
    if (record.instanceId !== request.instanceId) continue;
    if (record.name === request.nodeName) return record.id;
    throw new CloisterError(
      'join.name-taken',
      `Could not join: this agent is the node ${record.name} already.`,
    );
  }
  if (state.nodeIdByName.has(request.nodeName)) {
    throw new CloisterError(
      'join.name-taken',
      `Could not join: another agent is the node ${request.nodeName}.`,
    );
  }
  return undefined;
}

async function admitNode(
  cluster: Cluster,
  request: JoinRequest,
  tokenId: string,
  nodeId: NodeId,
): Promise<void> {
  await cluster.committer.commit((state, change) => {
    const token = state.joinTokens.get(tokenId);
    if (!token || token.record.usedBy) {
      throw new CloisterError('join.token-used', 'Could not join: this join token has been used.');
    }
    const known = knownNode(state, request);
    if (known !== undefined && known !== nodeId) {
      throw new CloisterError(
        'join.name-taken',
        `Could not join: another agent is the node ${request.nodeName}.`,
      );
    }
    const old = known && state.nodes.get(known);
    const record: NodeRecord = {
      capacity: { cpuMilli: 0, memoryMiB: 0, diskMiB: 0, sandboxes: 0, sandboxOverheadMiB: 0 }, // until it says hello
      cordoned: false,
      ...old?.record,
      id: nodeId,
      name: request.nodeName,
      role: token.record.role,
      labels: request.labels,
      joinedAt: change.nowMs,
      instanceId: request.instanceId as AgentInstanceId,
    };
    change.put(keys.joinToken(tokenId), { ...token.record, usedBy: nodeId }, token.modRevision);
    change.put(keys.node(nodeId), record, old ? old.modRevision : 0);
    if (!old) change.put(keys.nodeName(record.name), nodeId, 0);
    change.tell({ type: 'node.joined', subject: nodeId, name: record.name, message: `As ${record.role}.` });
    return true;
  });
}
