// Where a registry may send us. Users name registries and registries name token servers and blob stores, so both could
// try to make the node call something inside: the host itself, its neighbours, a cloud's metadata service.
import { lookup } from 'node:dns/promises';
import { BlockList, isIP } from 'node:net';
import { CloisterError } from '@cloister/model/errors.ts';

const LOOPBACK = blockList([
  ['127.0.0.0', 8],
  ['::1', 128],
]);
const LINK_LOCAL = blockList([
  ['169.254.0.0', 16],
  ['fe80::', 10],
  ['0.0.0.0', 8],
  ['::', 128],
  ['fd00:ec2::254', 128],
]);
const INTERNAL = blockList([
  ['127.0.0.0', 8],
  ['10.0.0.0', 8],
  ['172.16.0.0', 12],
  ['192.168.0.0', 16],
  ['100.64.0.0', 10],
  ['::1', 128],
  ['fc00::', 7],
]);

/** "localhost", 127.0.0.0/8 and ::1, with or without a port. */
export function isLoopback(registry: string): boolean {
  const host = bareHost(new URL(`http://${registry}`).hostname);
  return host === 'localhost' || (isIP(host) !== 0 && contains(LOOPBACK, host));
}

/**
 * Throws unless `url` may be called on behalf of `registry`. Link-local addresses never; internal ones only when the
 * registry itself is internal; without TLS only when the registry is (`plain`). A name is looked up here and again by
 * the connection: who owns the name's DNS can win that race, so this is a fence beside the node's firewall, not instead.
 */
export async function checkDestination(url: URL, registry: { host: string; plain: boolean }): Promise<void> {
  const refuse = (why: string): CloisterError =>
    new CloisterError(
      'image.pull-failed',
      `The registry ${registry.host} sends to ${url.origin.slice(0, 200)}, which is refused: ${why}.`,
    );
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && registry.plain))
    throw refuse('it is not HTTPS');
  const addresses = await addressesOf(url.hostname);
  if (addresses.some((address) => contains(LINK_LOCAL, address))) throw refuse('it is a link-local address');
  if (url.host === registry.host || !addresses.some((address) => contains(INTERNAL, address))) return;
  const own = await addressesOf(new URL(`http://${registry.host}`).hostname);
  if (!own.some((address) => contains(INTERNAL, address)))
    throw refuse('it is an internal address, and the registry is not');
}

/** Empty when the name is unknown: connecting will say so. */
async function addressesOf(hostname: string): Promise<string[]> {
  const host = bareHost(hostname);
  if (isIP(host)) return [host];
  try {
    return (await lookup(host, { all: true })).map(({ address }) => address);
  } catch {
    return [];
  }
}

function bareHost(hostname: string): string {
  return hostname.replace(/^\[|\]$/g, '');
}

function contains(list: BlockList, address: string): boolean {
  return list.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4'); // an IPv4 address mapped to IPv6 is its IPv4 one
}

function blockList(subnets: readonly (readonly [string, number])[]): BlockList {
  const list = new BlockList();
  for (const [address, prefix] of subnets)
    list.addSubnet(address, prefix, isIP(address) === 6 ? 'ipv6' : 'ipv4');
  return list;
}
