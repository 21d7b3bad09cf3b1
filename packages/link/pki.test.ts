// What the authority signs, and what it does not.
import 'reflect-metadata';
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { test } from 'node:test';
import { newNodeId } from '@cloister/model/ids.ts';
import * as x509 from '@peculiar/x509';
import {
  createAuthority,
  createNodeRequest,
  issueNodeCertificate,
  issueServerCertificate,
  nodeIdOf,
} from './pki.ts';

const nodeId = newNodeId();

async function requestWith(
  algorithm: EcKeyGenParams | RsaHashedKeyGenParams,
  name = 'CN=node',
): Promise<string> {
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const signingAlgorithm = { name: algorithm.name, hash: 'SHA-256' };
  return (await x509.Pkcs10CertificateRequestGenerator.create({ name, keys, signingAlgorithm })).toString(
    'pem',
  );
}
type EcKeyGenParams = { name: string; namedCurve: string };
type RsaHashedKeyGenParams = {
  name: string;
  modulusLength: number;
  publicExponent: Uint8Array<ArrayBuffer>;
  hash: string;
};

test("a node's certificate says who it is, whatever its request asked for", async () => {
  const authority = await createAuthority();
  const other = newNodeId();
  const csr = await requestWith({ name: 'ECDSA', namedCurve: 'P-256' }, `CN=${other}`);
  const certificate = new X509Certificate(await issueNodeCertificate(authority, csr, nodeId));
  assert.equal(nodeIdOf(certificate.raw), nodeId);
  assert.ok(!certificate.toString().includes(other));
  assert.deepEqual(certificate.keyUsage, ['1.3.6.1.5.5.7.3.2'], 'client authentication only');
  assert.equal(certificate.ca, false);
  const authorityCertificate = new X509Certificate(authority.certificatePem);
  assert.ok(certificate.checkIssued(authorityCertificate));
  assert.ok(certificate.verify(authorityCertificate.publicKey));
  const lifetimeDays = (certificate.validToDate.getTime() - Date.now()) / 86_400_000;
  assert.ok(lifetimeDays > 89 && lifetimeDays <= 90, `${lifetimeDays} days`);
  assert.ok(
    certificate.validFromDate.getTime() <= Date.now() - 86_000_000,
    'a clock that is hours late is fine',
  );
});

test('a request with another kind of key, a broken signature, or no sense is refused', async () => {
  const authority = await createAuthority();
  const refused = (csrPem: string) =>
    assert.rejects(issueNodeCertificate(authority, csrPem, nodeId), { code: 'request.invalid' });
  await refused(await requestWith({ name: 'ECDSA', namedCurve: 'P-384' }));
  await refused(
    await requestWith({
      name: 'RSASSA-PKCS1-v1_5',
      modulusLength: 2048,
      publicExponent: new Uint8Array([1, 0, 1]),
      hash: 'SHA-256',
    }),
  );
  const { csrPem } = await createNodeRequest();
  const der = Buffer.from(x509.PemConverter.decodeFirst(csrPem));
  der[der.length - 1] = (der.at(-1) ?? 0) ^ 1;
  await refused(x509.PemConverter.encode(der, x509.PemConverter.CertificateRequestTag));
  await refused('hello');
  await refused('');
});

test("the control plane's certificate names its hosts and addresses, and is nobody's node", async () => {
  const { certificatePem } = await issueServerCertificate(await createAuthority(), [
    'localhost',
    '127.0.0.1',
    '::1',
    'cp.example',
  ]);
  const certificate = new X509Certificate(certificatePem);
  assert.ok(certificate.checkHost('cp.example'));
  assert.ok(certificate.checkIP('127.0.0.1'));
  assert.ok(certificate.checkIP('::1'));
  assert.equal(certificate.checkHost('elsewhere.example'), undefined);
  assert.equal(nodeIdOf(certificate.raw), undefined);
  assert.deepEqual(certificate.keyUsage, ['1.3.6.1.5.5.7.3.1']);
});
