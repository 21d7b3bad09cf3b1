// What people write for an image ("busybox", "localhost:5000/team/app:v2", "app@sha256:..."), and what it means.
// The rules are Docker's: a first component with a dot or a colon, or "localhost", is a registry.
import { CloisterError } from '@cloister/model/errors.ts';

export interface Reference {
  /** Host, with its port when one was given: "docker.io", "127.0.0.1:5000". */
  readonly registry: string;
  /** "library/busybox". */
  readonly repository: string;
  /** What is looked up: exactly one of the two. A digest wins over a tag beside it. */
  readonly target: { readonly tag: string } | { readonly digest: string };
}

const MAX_REFERENCE_LENGTH = 512;
const MAX_NAME_LENGTH = 255;
const HOST =
  /^(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*|\[[0-9a-fA-F:.]{2,45}\])(?::[0-9]{1,5})?$/;
const PATH_COMPONENT = /^[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*$/;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const DIGEST = /^sha256:[a-f0-9]{64}$/;
const BARE_DIGEST = /^[a-f0-9]{64}$/;

/** True for "sha256:" and 64 lower-case hexadecimal digits, the only kind of digest that we take. */
export function isDigest(text: string): boolean {
  return DIGEST.test(text);
}

/** Throws 'image.reference-invalid'. */
export function parseReference(text: string): Reference {
  const refuse = (why: string): CloisterError =>
    new CloisterError('image.reference-invalid', `"${text.slice(0, 80)}" is not an image reference: ${why}.`);
  if (text.length > MAX_REFERENCE_LENGTH)
    throw refuse(`it is longer than ${MAX_REFERENCE_LENGTH} characters`);
  if (BARE_DIGEST.test(text)) throw refuse('it is a bare digest; write NAME@sha256:DIGEST');

  const at = text.indexOf('@');
  const digest = at < 0 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !isDigest(digest))
    throw refuse('after "@" comes sha256: and 64 hexadecimal digits');
  const named = at < 0 ? text : text.slice(0, at);

  // A colon after the last slash begins a tag; one before it belongs to the registry's port.
  const colon = named.indexOf(':', named.lastIndexOf('/') + 1);
  const tag = colon < 0 ? undefined : named.slice(colon + 1);
  if (tag !== undefined && !TAG.test(tag)) {
    throw refuse('a tag is 1 to 128 letters, digits, "_", "." and "-", and begins with neither "." nor "-"');
  }
  const { registry, repository } = splitName(colon < 0 ? named : named.slice(0, colon));
  if (!HOST.test(registry) || portOf(registry) > 65_535)
    throw refuse(`"${registry.slice(0, 80)}" is not a registry's host`);
  if (`${registry}/${repository}`.length > MAX_NAME_LENGTH)
    throw refuse(`its name is longer than ${MAX_NAME_LENGTH} characters`);
  for (const component of repository.split('/')) {
    if (!PATH_COMPONENT.test(component)) {
      throw refuse(
        `"${component.slice(0, 80)}" is not a name of lower-case letters and digits, separated by ".", "_" or "-"`,
      );
    }
  }
  return { registry, repository, target: digest === undefined ? { tag: tag ?? 'latest' } : { digest } };
}

/** registry/name:tag or registry/name@digest. Parsing it gives the same reference. */
export function formatReference(reference: Reference): string {
  const { registry, repository, target } = reference;
  return `${registry}/${repository}${'tag' in target ? `:${target.tag}` : `@${target.digest}`}`;
}

function splitName(name: string): { registry: string; repository: string } {
  const slash = name.indexOf('/');
  const first = name.slice(0, Math.max(0, slash));
  if (slash < 0 || !(/[.:]/.test(first) || first === 'localhost')) {
    return { registry: 'docker.io', repository: name.includes('/') ? name : `library/${name}` };
  }
  const rest = name.slice(slash + 1);
  const registry = first === 'index.docker.io' ? 'docker.io' : first.toLowerCase();
  return { registry, repository: registry === 'docker.io' && !rest.includes('/') ? `library/${rest}` : rest };
}

function portOf(registry: string): number {
  return Number(/:(\d{1,5})$/.exec(registry)?.[1] ?? 0);
}
