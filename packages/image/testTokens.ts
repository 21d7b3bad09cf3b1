// A token server for a test's registry: takes a user and a password, gives a signed token for what is asked.
import { randomUUID, sign } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { join } from 'node:path';
import { run } from '@cloister/kit/program.ts';
import { basicAuthorization, type Credentials } from './authorization.ts';

const ISSUER = 'test-tokens';
const SERVICE = 'test-registry';

export class TestTokenServer {
  readonly #server: Server;
  readonly #certificatePath: string;
  readonly #certificate: string;
  readonly #key: string;
  readonly #credentials: Credentials;

  private constructor(certificatePath: string, certificate: string, key: string, credentials: Credentials) {
    this.#certificatePath = certificatePath;
    this.#certificate = certificate;
    this.#key = key;
    this.#credentials = credentials;
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  static async start(folder: string, credentials: Credentials): Promise<TestTokenServer> {
    const [keyPath, certificatePath] = [join(folder, 'token.key'), join(folder, 'token.crt')];
    const names = ['-keyout', keyPath, '-out', certificatePath, '-subj', '/CN=test-tokens'];
    await run('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', ...names], {
      timeoutMs: 30_000,
    });
    const [certificate, key] = await Promise.all([
      readFile(certificatePath, 'utf8'),
      readFile(keyPath, 'utf8'),
    ]);
    const tokens = new TestTokenServer(certificatePath, certificate, key, credentials);
    tokens.#server.listen(0, '127.0.0.1');
    await once(tokens.#server, 'listening');
    return tokens;
  }

  get host(): string {
    const address = this.#server.address();
    return `127.0.0.1:${typeof address === 'object' && address ? address.port : 0}`;
  }

  /** The "auth" of the registry's configuration. */
  registryConfig(): object {
    const realm = `http://${this.host}/token`;
    return { token: { realm, service: SERVICE, issuer: ISSUER, rootcertbundle: this.#certificatePath } };
  }

  issue(repository: string, actions: readonly string[]): string {
    const nowSeconds = Math.floor(Date.now() / 1000);
    const der = this.#certificate.replaceAll(/-----[A-Z ]+-----|\s/g, '');
    const header = { typ: 'JWT', alg: 'RS256', x5c: [der] };
    const claims = {
      iss: ISSUER,
      sub: this.#credentials.username,
      aud: SERVICE,
      exp: nowSeconds + 300,
      nbf: nowSeconds - 30,
      iat: nowSeconds,
      jti: randomUUID(),
      access: [{ type: 'repository', name: repository, actions }],
    };
    const payload = [header, claims]
      .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
      .join('.');
    return `${payload}.${sign('sha256', Buffer.from(payload), this.#key).toString('base64url')}`;
  }

  async stop(): Promise<void> {
    this.#server.close();
    this.#server.closeAllConnections();
    await once(this.#server, 'close');
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? '/', 'http://127.0.0.1');
    const [type, repository, actions] = (url.searchParams.get('scope') ?? '').split(':');
    const isKnown = request.headers.authorization === basicAuthorization(this.#credentials);
    if (!isKnown || type !== 'repository' || !repository || actions !== 'pull') {
      response.writeHead(401).end();
      return;
    }
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ token: this.issue(repository, ['pull']), expires_in: 300 }));
  }
}
