// Machines: look at them, keep work off them, let them join, forget them.
import { CloisterError } from '@cloister/model/errors.ts';
import type { NodeId } from '@cloister/model/ids.ts';
import type { Node } from '@cloister/model/node.ts';
import { createJoinToken, join } from '../joining.ts';
import { keys } from '../keys.ts';
import { findNode, type Handlers, type Parts } from './call.ts';

type Names =
  | 'listNodes'
  | 'getNode'
  | 'cordonNode'
  | 'uncordonNode'
  | 'removeNode'
  | 'createJoinToken'
  | 'join';

export function nodeHandlers(parts: Parts): Handlers<Names> {
  const { cluster, fleet } = parts;
  return {
    listNodes: () => {
      const nodes = [...cluster.follower.state.nodes.values()].map((held) => fleet.view(held));
      return { nodes: nodes.sort((a, b) => (a.name < b.name ? -1 : 1)) };
    },
    getNode: ({ params }) => fleet.view(findNode(parts, params.node)),
    cordonNode: ({ params }) => setCordoned(parts, params.node, true),
    uncordonNode: ({ params }) => setCordoned(parts, params.node, false),
    removeNode: async ({ params }) => {
      await removeNode(parts, findNode(parts, params.node).record.id);
      return undefined;
    },
    createJoinToken: ({ body }) => createJoinToken(cluster, body),
    join: ({ body, from }) => join(parts, body, from),
  };
}

async function setCordoned(parts: Parts, key: string | undefined, cordoned: boolean): Promise<Node> {
  await parts.cluster.committer.commit((_state, change) => {
    const { record, modRevision } = findNode(parts, key);
    if (record.cordoned === cordoned) return false;
    change.put(keys.node(record.id), { ...record, cordoned }, modRevision);
    change.tell({
      type: cordoned ? 'node.cordoned' : 'node.uncordoned',
      subject: record.id,
      name: record.name,
    });
    return true;
  });
  return parts.fleet.view(findNode(parts, key));
}

async function removeNode(parts: Parts, nodeId: NodeId): Promise<void> {
  await parts.cluster.committer.commit((state, change) => {
    const node = state.nodes.get(nodeId);
    if (!node) return false;
    const { record, modRevision } = node;
    if (parts.fleet.healthOf(nodeId) !== 'down' || state.usedOf(nodeId).sandboxes > 0) {
      throw new CloisterError(
        'state.wrong',
        `Could not remove ${record.name}: it is not down. End its agent first.`,
      );
    }
    change.delete(keys.node(nodeId), modRevision);
    change.ops.push(
      { type: 'delete', key: keys.nodeName(record.name) },
      { type: 'delete', key: keys.nodeWork(nodeId) },
    );
    change.tell({ type: 'node.removed', subject: nodeId, name: record.name });
    return true;
  });
}
