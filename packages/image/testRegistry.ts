// A registry of a test's own: Debian's docker-registry on a free port of loopback, with its data in a folder that
// goes with it; open to all, behind a password, or behind a token server.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock } from '@cloister/kit/clock.ts';
import { MINIMAL_ENV, run } from '@cloister/kit/program.ts';
import { poll } from '@cloister/kit/wait.ts';
import { basicAuthorization, type Credentials } from './authorization.ts';
import { type PushTarget, pushBlob, pushImage, pushManifest } from './pushImage.ts';
import type { TestBlob, TestImage } from './testImage.ts';
import { TestTokenServer } from './testTokens.ts';

export interface TestRegistryOptions {
  /** Default: everybody may pull and push. */
  readonly authorization?: 'password' | 'token';
}

const CREDENTIALS: Credentials = { username: 'alice', password: 'correct horse' };
const START_TIMEOUT_MS = 30_000;
const MAX_PORT_ATTEMPTS = 5;

export class TestRegistry {
  /** "127.0.0.1:PORT", as it stands in references. */
  readonly host: string;
  /** Of its token server: to be listed beside it. */
  readonly tokenHost: string | undefined;
  /** What its password or its token server takes. */
  readonly credentials: Credentials = CREDENTIALS;
  readonly #process: ChildProcess;
  readonly #folder: string;
  readonly #tokens: TestTokenServer | undefined;
  readonly #authorization: TestRegistryOptions['authorization'];

  private constructor(
    host: string,
    child: ChildProcess,
    folder: string,
    authorization: TestRegistryOptions['authorization'],
    tokens?: TestTokenServer,
  ) {
    this.host = host;
    this.#process = child;
    this.#folder = folder;
    this.#authorization = authorization;
    this.#tokens = tokens;
    this.tokenHost = tokens?.host;
  }

  static async start(options: TestRegistryOptions = {}): Promise<TestRegistry> {
    const folder = await mkdtemp(join(tmpdir(), 'cloister-registry-'));
    const tokens =
      options.authorization === 'token' ? await TestTokenServer.start(folder, CREDENTIALS) : undefined;
    const authorization =
      options.authorization === 'password'
        ? await passwordConfig(folder)
        : tokens
          ? tokens.registryConfig()
          : {};
    for (let attempt = 1; ; attempt++) {
      const host = `127.0.0.1:${await freePort()}`;
      const child = await startProcess(host, folder, authorization);
      if (child) return new TestRegistry(host, child, folder, options.authorization, tokens);
      if (attempt >= MAX_PORT_ATTEMPTS) throw new Error('docker-registry does not start');
    }
  }

  /** Gives the reference by which it can be pulled. */
  async pushImage(image: TestImage, repository: string, tag = 'latest'): Promise<string> {
    return await pushImage(this.#target(repository), image, repository, tag);
  }

  async pushBlob(part: TestBlob, repository: string): Promise<void> {
    await pushBlob(this.#target(repository), part, repository);
  }

  /** A manifest or an index. */
  async pushManifest(manifest: TestBlob, repository: string, tag: string): Promise<void> {
    await pushManifest(this.#target(repository), manifest, repository, tag);
  }

  async stop(): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      const exit = once(this.#process, 'exit');
      this.#process.kill('SIGKILL');
      await exit;
    }
    await this.#tokens?.stop();
    await rm(this.#folder, { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  #target(repository: string): PushTarget {
    const authorization =
      this.#authorization === 'password'
        ? basicAuthorization(CREDENTIALS)
        : this.#tokens && `Bearer ${this.#tokens.issue(repository, ['pull', 'push'])}`;
    return { host: this.host, authorization };
  }
}

/** A port of loopback that nobody listens on, for programs that cannot choose one themselves. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  return typeof address === 'object' && address ? address.port : 0;
}

/** Undefined when it ends at once: somebody else took the port. */
async function startProcess(host: string, folder: string, auth: object): Promise<ChildProcess | undefined> {
  const config = {
    version: 0.1,
    log: { level: 'error', accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: join(folder, 'data') }, delete: { enabled: true } },
    http: { addr: host, secret: 'test' },
    ...(Object.keys(auth).length > 0 ? { auth } : {}),
  };
  const path = join(folder, 'config.yml');
  await writeFile(path, JSON.stringify(config)); // JSON is YAML
  const child = spawn('docker-registry', ['serve', path], {
    stdio: 'ignore',
    env: { ...MINIMAL_ENV, OTEL_TRACES_EXPORTER: 'none' },
  });
  const check = async (): Promise<'up' | 'ended' | undefined> => {
    if (child.exitCode !== null) return 'ended';
    return await fetch(`http://${host}/v2/`).then(
      () => 'up' as const,
      () => undefined,
    );
  };
  const makeError = (): Error => new Error('docker-registry does not answer');
  const state = await poll(check, {
    clock: systemClock,
    everyMs: 20,
    timeoutMs: START_TIMEOUT_MS,
    makeError,
  });
  return state === 'up' ? child : undefined;
}

async function passwordConfig(folder: string): Promise<object> {
  const { username, password } = CREDENTIALS;
  const { stdout } = await run('htpasswd', ['-Bbn', username, password], { timeoutMs: 10_000 });
  const path = join(folder, 'htpasswd');
  await writeFile(path, stdout);
  return { htpasswd: { realm: 'test', path } };
}
