// Where a pull may connect to. Tenants name registries, and registries name token servers and blob stores, so both could
// make the node call something inside: itself, its neighbours, a cloud's metadata service. So they reach public addresses
// over HTTPS, and beyond that what the node's operator listed; where a request comes from makes no difference.
import { lookup } from 'node:dns/promises';
import { BlockList, isIP } from 'node:net';
import { networkInterfaces } from 'node:os';

/** Each as "HOST" or "HOST:PORT", as references have it. Blob stores and token servers of their own count as well. */
export interface Destinations {
  /** Spoken to without TLS, at whatever address. */
  readonly insecureRegistries?: readonly string[];
  /** Spoken to over HTTPS, at whatever address. */
  readonly internalRegistries?: readonly string[];
  /** Default: what the system says. */
  readonly lookUp?: (name: string) => Promise<Address[]>;
}

export interface Address {
  readonly address: string;
  readonly family: number;
}

const PUBLIC_IPV6 = blockList(['2000::/3']);
/** Special in one way or another, but for 168.63.129.16: a cloud's metadata service at a public address. */
const NOT_PUBLIC = blockList([
  ...['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '168.63.129.16/32', '169.254.0.0/16'],
  ...['172.16.0.0/12', '192.0.0.0/24', '192.0.2.0/24', '192.88.99.0/24', '192.168.0.0/16', '198.18.0.0/15'],
  ...['198.51.100.0/24', '203.0.113.0/24', '224.0.0.0/3'],
  ...['2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20'],
]);

/** Whether requests to this registry go without TLS. */
export function isInsecure(url: URL, { insecureRegistries = [] }: Destinations): boolean {
  return isListed(url, insecureRegistries);
}

/**
 * The addresses at which `url` may be called: all that it has, for the connection must go to what was checked. Undefined
 * when one of them may not be called, and also when the name is unknown: a tenant must not find out which names there
 * are inside. Throws when a listed name is unknown.
 */
export async function addressesOf(url: URL, destinations: Destinations): Promise<Address[] | undefined> {
  const { insecureRegistries = [], internalRegistries = [], lookUp = lookUpAll } = destinations;
  const host = url.hostname.replace(/^\[|\]$/g, '');
  const find = async (): Promise<Address[]> =>
    isIP(host) > 0 ? [{ address: host, family: isIP(host) }] : await lookUp(host);
  if (isListed(url, [...insecureRegistries, ...internalRegistries])) return await find();
  const addresses = await find().catch(() => []);
  const own = new Set(
    Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address)),
  );
  const isAllowed = ({ address }: Address): boolean => isPublic(address) && !own.has(address);
  return addresses.length > 0 && addresses.every(isAllowed) ? addresses : undefined;
}

function isPublic(address: string): boolean {
  if (isIP(address) === 6) return PUBLIC_IPV6.check(address, 'ipv6') && !NOT_PUBLIC.check(address, 'ipv6');
  return !NOT_PUBLIC.check(address);
}

async function lookUpAll(name: string): Promise<Address[]> {
  return await lookup(name, { all: true });
}

function isListed(url: URL, registries: readonly string[]): boolean {
  return registries.some((registry) => URL.parse(`${url.protocol}//${registry}`)?.host === url.host);
}

function blockList(subnets: readonly string[]): BlockList {
  const list = new BlockList();
  for (const subnet of subnets) {
    const [address = '', prefix] = subnet.split('/');
    list.addSubnet(address, Number(prefix), isIP(address) === 6 ? 'ipv6' : 'ipv4');
  }
  return list;
}
