// A registry over node:http that does as a test says: serves wrong bytes, breaks off, redirects, asks for tokens. For
// what an honest registry cannot be made to do.
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { TestBlob, TestImage } from './testImage.ts';

/** True when it has answered. */
export type Handler = (
  request: IncomingMessage,
  response: ServerResponse,
  part: TestBlob | undefined,
) => boolean;

export class FakeRegistry {
  readonly requests: IncomingMessage[] = [];
  /** Also those that brought no request. */
  connections = 0;
  /** Asked first; what it leaves is answered as a registry should. */
  handler: Handler = () => false;
  readonly #server: Server;
  readonly #parts = new Map<string, TestBlob>();

  private constructor() {
    this.#server = createServer((request, response) => {
      this.requests.push(request);
      const part = this.#parts.get((request.url ?? '').split('/').at(-1) ?? '');
      if (!this.handler(request, response, part)) answer(request, response, part);
    });
  }

  static async start(): Promise<FakeRegistry> {
    const registry = new FakeRegistry();
    registry.#server.on('connection', () => {
      registry.connections += 1;
    });
    registry.#server.listen(0, '127.0.0.1');
    await once(registry.#server, 'listening');
    return registry;
  }

  get host(): string {
    const address = this.#server.address();
    return `127.0.0.1:${typeof address === 'object' && address ? address.port : 0}`;
  }

  /** Served for every repository. Gives a reference to it. */
  serve(image: TestImage, tag = 'latest'): string {
    for (const part of [...image.layers, image.config, image.manifest]) this.servePart(part);
    this.servePart(image.manifest, tag);
    return `${this.host}/fake/image:${tag}`;
  }

  servePart(part: TestBlob, name: string = part.digest): void {
    this.#parts.set(name, part);
  }

  async stop(): Promise<void> {
    this.#server.close();
    this.#server.closeAllConnections();
    await once(this.#server, 'close');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

function answer(request: IncomingMessage, response: ServerResponse, part: TestBlob | undefined): void {
  if (!part) {
    response.writeHead(404).end();
    return;
  }
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
  const range =
    start > 0 ? { 'content-range': `bytes ${start}-${part.bytes.length - 1}/${part.bytes.length}` } : {};
  response.writeHead(start > 0 ? 206 : 200, { 'content-type': part.mediaType, ...range });
  response.end(request.method === 'HEAD' ? undefined : part.bytes.subarray(start));
}
