// cloister nodes: the machines, for operators.
import type { CloisterClient } from '@cloister/client/client.ts';
import type { Node, NodeRole } from '@cloister/model/node.ts';
import { formatBytes } from '@cloister/model/units.ts';
import { optional, parseDurationMs } from '../arguments.ts';
import { defineCommand } from '../command.ts';
import type { Context } from '../context.ts';
import { eachTarget } from '../eachTarget.ts';
import { attempt, UsageError } from '../failure.ts';
import { type Colour, formatAge, shortId } from '../format.ts';

const MIB = 1024 * 1024;
const HEALTH: Readonly<Record<Node['health'], Colour>> = { ready: 'green', suspect: 'yellow', down: 'red' };

export const nodes = defineCommand({
  usage: 'nodes [ls | cordon NODE... | uncordon NODE... | rm NODE... | token] [OPTIONS]',
  options: {
    role: { type: 'string', value: 'ROLE', help: 'token: worker, control or system. Default: worker.' },
    name: { type: 'string', value: 'NAME', help: 'token: only a node of this name may use it.' },
    ttl: { type: 'string', value: 'TIME', help: 'token: how long it is good for: 10m, 1h. Default 1h.' },
  },
  min: 0,
  max: 1000,
  details: `ls: list them (the default). cordon, uncordon: place no more work there, or again. rm: forget one that is down.
token: print a secret with which one machine can join, once.`,
  example: 'cloister nodes\ncloister node cordon worker-1\ncloister node token --name worker-2',
  async run(context, values, [action = 'ls', ...keys]) {
    if (action === 'ls' || action === 'token') {
      if (keys.length > 0) throw new UsageError(`nodes ${action} takes no names.`);
    } else if (!['cordon', 'uncordon', 'rm'].includes(action)) {
      throw new UsageError(
        `"${action.slice(0, 40)}" is nothing to do with nodes; it is one of ls, cordon, uncordon, rm, token.`,
      );
    } else if (keys.length === 0) throw new UsageError(`Which node? Write: cloister nodes ${action} NODE`);
    const role = optional('--role', values.role, parseRole);
    const ttlMs = optional('--ttl', values.ttl, parseDurationMs);
    const client = await context.client();
    if (action === 'ls') return await list(context, client);
    if (action === 'cordon')
      return await eachTarget(context, 'cordon', keys, (key) => client.cordonNode(key));
    if (action === 'uncordon')
      return await eachTarget(context, 'uncordon', keys, (key) => client.uncordonNode(key));
    if (action === 'rm')
      return await eachTarget(context, 'remove', keys, async (key) => {
        await client.removeNode(key);
        return { removed: key };
      });
    const body = {
      ...(role === undefined ? {} : { role }),
      ...(values.name === undefined ? {} : { nodeName: values.name }),
      ...(ttlMs === undefined ? {} : { ttlMs }),
    };
    const token = await attempt('make a join token', () => client.createJoinToken(body));
    if (context.json) await context.document(token);
    else await context.line(token.secret);
    return 0;
  },
});

function parseRole(text: string): NodeRole {
  if (text === 'worker' || text === 'control' || text === 'system') return text;
  throw new UsageError(`"${text.slice(0, 40)}" is not a role; it is one of worker, control, system.`);
}

async function list(context: Context, client: CloisterClient): Promise<number> {
  const { nodes } = await attempt('list nodes', () => client.listNodes());
  if (context.json) {
    await context.document({ nodes });
    return 0;
  }
  const now = context.now();
  const rows = nodes.map((node) => [
    node.name,
    shortId(node.id),
    node.role,
    {
      text: node.cordoned ? `${node.health}, cordoned` : node.health,
      colour: node.cordoned && node.health === 'ready' ? ('yellow' as const) : HEALTH[node.health],
    },
    `${node.used.cpuMilli / 1000}/${node.capacity.cpuMilli / 1000}`,
    `${formatBytes(node.used.memoryMiB * MIB)}/${formatBytes(node.capacity.memoryMiB * MIB)}`,
    `${node.used.sandboxes}/${node.capacity.sandboxes}`,
    node.facts ? `${node.facts.vmm} (${node.facts.acceleration})` : '-',
    formatAge(node.joinedAt, now),
  ]);
  await context.table(
    [
      { title: 'NAME' },
      { title: 'ID' },
      { title: 'ROLE' },
      { title: 'HEALTH' },
      { title: 'CPU', isRight: true },
      { title: 'MEMORY', isRight: true },
      { title: 'SANDBOXES', isRight: true },
      { title: 'VMM', isElastic: true },
      { title: 'JOINED' },
    ],
    rows,
  );
  return 0;
}
