// The cluster's own certificate authority, and the three kinds of certificates it signs. ECDSA P-256 throughout.
//
// Lifetimes: the CA 10 years, the control plane's own certificate 1 year (made anew at each start), a node's 90 days.
// A node renews by joining again with a new join token and the same instance id; there is no renewal over the link
// yet. There is no revocation list either: a certificate only says who a node is, and the control plane asks its
// state on each session whether that node may still come in.
// Everything begins one day before it is made, so that clocks that disagree by hours do no harm.
import 'reflect-metadata'; // @peculiar/x509 does not load without it
import { X509Certificate as NodeCertificate, type webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import { CloisterError } from '@cloister/model/errors.ts';
import type { NodeId } from '@cloister/model/ids.ts';
import * as x509 from '@peculiar/x509';

const DAY_MS = 86_400_000;
export const CA_LIFETIME_MS = 3650 * DAY_MS;
export const SERVER_LIFETIME_MS = 365 * DAY_MS;
export const NODE_LIFETIME_MS = 90 * DAY_MS;

const KEY_ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256' } as const;
const SIGNING = { name: 'ECDSA', hash: 'SHA-256' } as const;
const NODE_URI = /^cloister:\/\/node\/(nod-[a-z2-7]{26})$/;

/** A certificate and its private key, both PEM. The key is a secret: files that hold it have mode 0600. */
export interface KeyAndCertificate {
  readonly certificatePem: string;
  readonly keyPem: string;
}

/** When the certificate begins and ends. For tests of expiry; the defaults are documented above. */
export interface Validity {
  readonly notBefore?: Date;
  readonly notAfter?: Date;
}

/** A new authority with a name of its own, so that two clusters are told apart by people too. */
export async function createAuthority(): Promise<KeyAndCertificate> {
  const keys = await generateKeys();
  const suffix = Buffer.from(crypto.getRandomValues(new Uint8Array(8))).toString('hex');
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerialNumber(),
    name: [{ CN: [`Cloister CA ${suffix}`] }],
    keys,
    signingAlgorithm: SIGNING,
    ...validity(CA_LIFETIME_MS),
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { certificatePem: certificate.toString('pem'), keyPem: await exportKey(keys.privateKey) };
}

/** The control plane's certificate, for its API and for the agents' link. `names`: DNS names and IP addresses. */
export async function issueServerCertificate(
  authority: KeyAndCertificate,
  names: readonly string[],
  times: Validity = {},
): Promise<KeyAndCertificate> {
  const keys = await generateKeys();
  const certificatePem = await sign(authority, {
    commonName: 'cloister-server',
    publicKey: keys.publicKey,
    usage: x509.ExtendedKeyUsage.serverAuth,
    names: names.map((name) => ({ type: isIP(name) ? 'ip' : 'dns', value: name })),
    lifetimeMs: SERVER_LIFETIME_MS,
    times,
  });
  return { certificatePem, keyPem: await exportKey(keys.privateKey) };
}

/**
 * A node's certificate for the key of its request. Only the key is taken from the request: whatever name it asks
 * for, the identity is the one given here. Throws `request.invalid` for any other key or a wrong signature.
 */
export async function issueNodeCertificate(
  authority: KeyAndCertificate,
  csrPem: string,
  nodeId: NodeId,
  times: Validity = {},
): Promise<string> {
  return await sign(authority, {
    commonName: nodeId,
    publicKey: await readRequest(csrPem),
    usage: x509.ExtendedKeyUsage.clientAuth,
    names: [{ type: 'url', value: `cloister://node/${nodeId}` }],
    lifetimeMs: NODE_LIFETIME_MS,
    times,
  });
}

/** The agent's side: a new key, which never leaves the machine, and the request for its certificate. */
export async function createNodeRequest(): Promise<{ readonly csrPem: string; readonly keyPem: string }> {
  const keys = await generateKeys();
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: [{ CN: ['node'] }],
    keys,
    signingAlgorithm: SIGNING,
  });
  return { csrPem: request.toString('pem'), keyPem: await exportKey(keys.privateKey) };
}

/**
 * Who a peer is, from a certificate that TLS has already verified against our authority. Undefined when it is none
 * of a node's (the control plane's own, say): both places that name the node must agree.
 */
export function nodeIdOf(certificateDer: Buffer): NodeId | undefined {
  const certificate = new NodeCertificate(certificateDer);
  const commonName = /^CN=(nod-[a-z2-7]{26})$/.exec(certificate.subject)?.[1];
  const uris = (certificate.subjectAltName ?? '').split(', ').map((name) => name.replace(/^URI:/, ''));
  const fromUri = uris.length === 1 && uris[0] ? NODE_URI.exec(uris[0])?.[1] : undefined;
  return commonName && commonName === fromUri ? (commonName as NodeId) : undefined;
}

interface SignRequest {
  readonly commonName: string;
  readonly publicKey: CryptoKey;
  readonly usage: x509.ExtendedKeyUsage;
  readonly names: x509.JsonGeneralNames;
  readonly lifetimeMs: number;
  readonly times: Validity;
}

async function sign(authority: KeyAndCertificate, request: SignRequest): Promise<string> {
  const issuer = new x509.X509Certificate(authority.certificatePem);
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: newSerialNumber(),
    subject: [{ CN: [request.commonName] }],
    issuer: issuer.subjectName,
    publicKey: request.publicKey,
    signingKey: await importKey(authority.keyPem),
    signingAlgorithm: SIGNING,
    ...validity(request.lifetimeMs),
    ...request.times,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([request.usage], true),
      new x509.SubjectAlternativeNameExtension(request.names),
      await x509.AuthorityKeyIdentifierExtension.create(issuer),
      await x509.SubjectKeyIdentifierExtension.create(request.publicKey),
    ],
  });
  return certificate.toString('pem');
}

async function readRequest(csrPem: string): Promise<CryptoKey> {
  const refuse = (why: string, cause?: unknown) =>
    new CloisterError('request.invalid', `The certificate request was refused: ${why}.`, {
      cause,
      fields: [{ path: '/csrPem', message: why }],
    });
  try {
    const request = new x509.Pkcs10CertificateRequest(csrPem);
    const { name, namedCurve } = request.publicKey.algorithm as { name: string; namedCurve?: string };
    if (name !== KEY_ALGORITHM.name || namedCurve !== KEY_ALGORITHM.namedCurve) {
      throw refuse('its key is not ECDSA P-256');
    }
    if (!(await request.verify())) throw refuse('its signature does not fit its key');
    return await request.publicKey.export();
  } catch (error) {
    throw error instanceof CloisterError ? error : refuse('it is not a PKCS #10 request in PEM', error);
  }
}

function validity(lifetimeMs: number): { notBefore: Date; notAfter: Date } {
  return { notBefore: new Date(Date.now() - DAY_MS), notAfter: new Date(Date.now() + lifetimeMs) };
}

/** 127 random bits, positive. */
function newSerialNumber(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return Buffer.from(bytes).toString('hex');
}

async function generateKeys(): Promise<webcrypto.CryptoKeyPair> {
  return await crypto.subtle.generateKey(KEY_ALGORITHM, true, ['sign', 'verify']);
}

async function exportKey(key: CryptoKey): Promise<string> {
  const pkcs8 = await crypto.subtle.exportKey('pkcs8', key);
  return x509.PemConverter.encode(pkcs8, x509.PemConverter.PrivateKeyTag);
}

async function importKey(keyPem: string): Promise<CryptoKey> {
  const pkcs8 = x509.PemConverter.decodeFirst(keyPem);
  return await crypto.subtle.importKey('pkcs8', pkcs8, KEY_ALGORITHM, false, ['sign']);
}
