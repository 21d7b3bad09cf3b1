// References: the examples that Docker's users know, and the laws.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CloisterError } from '@cloister/model/errors.ts';
import fc from 'fast-check';
import { formatReference, parseReference } from './reference.ts';

const DIGEST = `sha256:${'a1'.repeat(32)}`;

test('references mean what they mean to Docker', () => {
  const meanings: Record<string, string> = {
    busybox: 'docker.io/library/busybox:latest',
    'busybox:1.36': 'docker.io/library/busybox:1.36',
    'team/app': 'docker.io/team/app:latest',
    'docker.io/busybox': 'docker.io/library/busybox:latest',
    'index.docker.io/library/busybox': 'docker.io/library/busybox:latest',
    'localhost/app': 'localhost/app:latest',
    'localhost:5000/app:v2': 'localhost:5000/app:v2',
    '127.0.0.1:5000/a/b/c': '127.0.0.1:5000/a/b/c:latest',
    '[::1]:5000/app': '[::1]:5000/app:latest',
    'GHCR.io/team/app': 'ghcr.io/team/app:latest',
    [`app@${DIGEST}`]: `docker.io/library/app@${DIGEST}`,
    [`app:v1@${DIGEST}`]: `docker.io/library/app@${DIGEST}`,
    'a__b/c.d-e---f': 'docker.io/a__b/c.d-e---f:latest',
  };
  for (const [text, normalized] of Object.entries(meanings)) {
    assert.equal(formatReference(parseReference(text)), normalized);
  }
});

test('what is no reference is refused with the reason', () => {
  const refused = [
    '',
    ':tag',
    'App',
    'a//b',
    '/a',
    'a/',
    'a:',
    'a:.x',
    `a:${'t'.repeat(129)}`,
    'a@sha256:12',
    `a@sha512:${'a'.repeat(128)}`,
    'a b',
    'a\n',
    '../etc/passwd',
    'host.example/../x',
    'host.example:99999/x',
    'user@host.example/x',
    'http://host.example/x',
    'ab'.repeat(32),
    `x/${'y'.repeat(300)}`,
    'z'.repeat(100_000),
  ];
  for (const text of refused) {
    assert.throws(
      () => parseReference(text),
      (error) => error instanceof CloisterError && error.code === 'image.reference-invalid',
      text.slice(0, 40),
    );
  }
});

test('any text is either refused or has a normal form that parses to itself and is safe in a URL', () => {
  const pieces = fc.constantFrom(
    'a',
    'b9',
    'Z',
    '.',
    '-',
    '_',
    '/',
    ':',
    '@',
    '..',
    'localhost',
    '5000',
    DIGEST,
    '[::1]',
    '%',
    ' ',
    '?',
    '#',
  );
  const texts = fc.oneof(
    fc.string(),
    fc.array(pieces, { maxLength: 9 }).map((parts) => parts.join('')),
  );
  fc.assert(
    fc.property(texts, (text) => {
      let reference: ReturnType<typeof parseReference>;
      try {
        reference = parseReference(text);
      } catch (error) {
        return error instanceof CloisterError && error.code === 'image.reference-invalid';
      }
      const normal = formatReference(reference);
      assert.deepEqual(parseReference(normal), reference);
      const target = 'tag' in reference.target ? reference.target.tag : reference.target.digest;
      const path = `/v2/${reference.repository}/manifests/${target}`;
      assert.equal(new URL(`https://host.example${path}`).pathname, path);
      return true;
    }),
    { numRuns: 2000 },
  );
});
