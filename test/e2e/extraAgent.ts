// For tests: one more agent, as a machine of its own would run it, to whatever end it comes.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { MINIMAL_ENV, run } from '@cloister/kit/program.ts';
import type { EndToEnd } from './fixture.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const NODE = join(ROOT, 'node_modules/.bin/node');

export class ExtraAgent {
  readonly #child: ChildProcess;
  readonly #configPath: string;
  #stdout = '';
  stderr = '';

  private constructor(child: ChildProcess, configPath: string) {
    this.#child = child;
    this.#configPath = configPath;
    child.stdout?.on('data', (chunk: Buffer) => {
      this.#stdout += chunk.toString();
    });
    child.stderr?.on('data', (chunk: Buffer) => {
      this.stderr = (this.stderr + chunk.toString()).slice(-100_000);
    });
  }

  static async start(
    e2e: EndToEnd,
    options: { readonly name: string; readonly token: string; readonly env?: Record<string, string> },
  ): Promise<ExtraAgent> {
    const folder = await mkdtemp(join(e2e.folder, 'extra-'));
    const tokenPath = join(folder, 'token');
    await writeFile(tokenPath, options.token, { mode: 0o600 });
    await mkdir(join(folder, 'state'), { mode: 0o711 });
    const configPath = join(folder, 'agent.json');
    const config = {
      stateFolder: join(folder, 'state'),
      guestFolder: join(ROOT, 'build/guest'),
      apiUrl: e2e.cluster.apiUrl,
      caFile: join(e2e.cluster.folder, 'server/ca.pem'),
      joinTokenFile: tokenPath,
      nodeName: options.name,
      cgroupPath: `${e2e.cluster.cgroupPath}-${options.name}`,
      firstUid: 1_100_000_000,
      insecureRegistries: [e2e.registry.host],
    };
    await writeFile(configPath, JSON.stringify(config));
    const child = spawn(NODE, [join(ROOT, 'packages/agent/main.ts'), configPath], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...MINIMAL_ENV, ...options.env },
    });
    return new ExtraAgent(child, configPath);
  }

  /** Resolves when the control plane has let it in. */
  async welcomed(): Promise<void> {
    while (!this.#stdout.includes('\n')) {
      if (this.#child.exitCode !== null) throw new Error(`it ended: ${this.stderr}`);
      if (this.#child.stdout)
        await Promise.race([once(this.#child.stdout, 'data'), once(this.#child, 'exit')]);
    }
  }

  /** Its exit code. */
  async exited(): Promise<number | null> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, 'close');
    return this.#child.exitCode;
  }

  async stop(): Promise<void> {
    this.#child.kill('SIGTERM');
    await this.exited();
    const teardown = join(ROOT, 'packages/agent/teardown.ts');
    await run(NODE, [teardown, this.#configPath], { timeoutMs: 60_000, env: MINIMAL_ENV });
  }
}
