// Putting an image into a registry: its layers, its configuration, its manifest. For local registries and tests.
import type { TestBlob, TestImage } from './testImage.ts';

export interface PushTarget {
  /** "127.0.0.1:PORT"; plain HTTP. */
  readonly host: string;
  readonly authorization?: string | undefined;
}

/** Gives the reference by which it can be pulled. */
export async function pushImage(
  target: PushTarget,
  image: TestImage,
  repository: string,
  tag: string,
): Promise<string> {
  for (const part of [...image.layers, image.config]) await pushBlob(target, part, repository);
  await pushManifest(target, image.manifest, repository, tag);
  return `${target.host}/${repository}:${tag}`;
}

export async function pushBlob(target: PushTarget, part: TestBlob, repository: string): Promise<void> {
  const begun = await send(target, 'POST', `/v2/${repository}/blobs/uploads/`);
  const url = new URL(begun.headers.get('location') ?? '', `http://${target.host}`);
  url.searchParams.set('digest', part.digest);
  await send(target, 'PUT', `${url.pathname}${url.search}`, part.bytes, 'application/octet-stream');
}

/** A manifest or an index. */
export async function pushManifest(
  target: PushTarget,
  manifest: TestBlob,
  repository: string,
  tag: string,
): Promise<void> {
  await send(target, 'PUT', `/v2/${repository}/manifests/${tag}`, manifest.bytes, manifest.mediaType);
}

async function send(
  { host, authorization }: PushTarget,
  method: string,
  path: string,
  body?: Buffer,
  contentType?: string,
): Promise<Response> {
  const response = await fetch(`http://${host}${path}`, {
    method,
    headers: {
      ...(contentType ? { 'content-type': contentType } : {}),
      ...(authorization ? { authorization } : {}),
    },
    ...(body ? { body: new Uint8Array(body) } : {}),
  });
  if (!response.ok)
    throw new Error(`${method} ${path}: ${response.status} ${(await response.text()).slice(0, 500)}`);
  await response.body?.cancel();
  return response;
}
