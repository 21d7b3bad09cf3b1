// Sessions as the control plane sees them, over the real link: what is said first, what again, and when none is left.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { type Clock, systemClock } from '@cloister/kit/clock.ts';
import { silentLogger } from '@cloister/kit/log.ts';
import { BoundedQueue } from '@cloister/kit/queue.ts';
import { connectLink, type LinkSession, runSessions } from '@cloister/link/clientLink.ts';
import type { LinkStream } from '@cloister/link/linkStream.ts';
import type { AgentMessage, Assignment, ServerMessage } from '@cloister/link/messages.ts';
import {
  createAuthority,
  createNodeRequest,
  issueNodeCertificate,
  issueServerCertificate,
} from '@cloister/link/pki.ts';
import { type ServerLink, startServerLink } from '@cloister/link/serverLink.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { newAgentInstanceId, newNodeId } from '@cloister/model/ids.ts';
import { AgentSession, type SessionParts } from './session.ts';
import { StatusBook } from './statuses.ts';

type Session = LinkStream<AgentMessage, ServerMessage>;
type Name = AgentMessage['message'];

const limit = { timeout: 20_000 };
let link: ServerLink;
let identity: { address: string; caPem: string; certificatePem: string; keyPem: string };
/** Of the control plane's side, in the order in which they began. */
let sessions: BoundedQueue<ControlledSession>;
let folder: string;
let statuses: StatusBook;

before(async () => {
  const authority = await createAuthority();
  const certificate = await issueServerCertificate(authority, ['127.0.0.1']);
  const { csrPem, keyPem } = await createNodeRequest();
  const caPem = authority.certificatePem;
  link = await startServerLink({
    ...certificate,
    host: '127.0.0.1',
    port: 0,
    caPem,
    logger: silentLogger,
    onSession: async (stream) => {
      sessions.tryPush(new ControlledSession(stream));
      await stream.closed;
    },
    onStream: async () => {},
  });
  const certificatePem = await issueNodeCertificate(authority, csrPem, newNodeId());
  identity = { address: link.address, caPem, certificatePem, keyPem };
});
after(() => link.close());
beforeEach(async () => {
  sessions = new BoundedQueue(16);
  folder = await mkdtemp(join(tmpdir(), 'cloister-session-'));
  statuses = await StatusBook.open(folder);
});
afterEach(async () => await rm(folder, { recursive: true }));

/** The control plane's side of one, said by the test word by word. */
class ControlledSession {
  readonly stream: Session;
  readonly heard: AgentMessage[] = [];
  readonly #messages: AsyncIterator<AgentMessage>;

  constructor(stream: Session) {
    this.stream = stream;
    this.#messages = stream[Symbol.asyncIterator]();
  }

  /** The next word of this kind; those before it are in `heard`. */
  async hear<Kind extends Name>(kind: Kind): Promise<Extract<AgentMessage, { message: Kind }>> {
    for (;;) {
      const next = await this.#messages.next();
      if (next.done) assert.fail(`it ended before ${kind}`);
      this.heard.push(next.value);
      if (next.value.message === kind) return next.value as Extract<AgentMessage, { message: Kind }>;
    }
  }

  async welcome(heartbeatIntervalMs = 60_000): Promise<void> {
    await this.stream.write({ message: 'welcome', welcome: { heartbeatIntervalMs, clockMs: Date.now() } });
  }

  break(): void {
    this.stream.cancel(new CloisterError('unavailable', 'The control plane is closing.'));
  }
}

async function nextSession(): Promise<ControlledSession> {
  const next = await sessions.take();
  if (next.done) assert.fail('no session');
  return next.value;
}

/** An agent without machines: it writes down what it is told to do. */
class TestedAgent implements AsyncDisposable {
  readonly did: string[] = [];
  readonly lost: unknown[] = [];
  session: AgentSession | undefined;
  capacity: SessionParts['capacity'] = async () => ({
    cpuMilli: 1,
    memoryMiB: 1,
    diskMiB: 1,
    sandboxes: 1,
    sandboxOverheadMiB: 0,
  });
  readonly #closing = new AbortController();
  readonly #running: Promise<void>;

  constructor(clock: Clock = systemClock) {
    this.#running = runSessions({
      connect: async () => await connectLink(identity),
      onSession: async (session) => await this.#hold(session, clock),
      onLost: (error) => void this.lost.push(error),
      clock,
      signal: this.#closing.signal,
    });
  }

  async #hold(link: LinkSession, clock: Clock): Promise<void> {
    const facts = { hostname: 'h', architecture: 'amd64', hostKernel: '6', guestKernel: '6' };
    this.session = new AgentSession(
      {
        instanceId: newAgentInstanceId(),
        facts: { ...facts, vmm: 'none', acceleration: 'tcg', agentVersion: '0' },
        capacity: async () => await this.capacity(),
        assignments: {
          begin: () => void this.did.push('begin'),
          take: ({ allocationId, desired }: Assignment) => void this.did.push(`${desired} ${allocationId}`),
          complete: () => void this.did.push('complete'),
          remove: (id: string) => void this.did.push(`remove ${id}`),
          signal: (id: string, signal: number) => {
            if (id === 'absent') throw new CloisterError('state.wrong', 'It does not run.');
            this.did.push(`signal ${signal} to ${id}`);
          },
        },
        statuses,
        images: { list: () => [] },
        clock,
        logger: silentLogger,
        serveStream: async () => {},
        onWelcome: () => {},
      },
      link,
    );
    await this.session.run();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#running;
  }
}

describe('an agent', () => {
  test(
    'says hello first, whatever changes meanwhile, and all that it has after the welcome',
    limit,
    async () => {
      statuses.tell('alc-a', { state: 'running' });
      await using agent = new TestedAgent();
      const measured = Promise.withResolvers<void>();
      const { capacity } = agent;
      agent.capacity = async () => {
        agent.session?.imagesChanged(); // a pull ends at this very moment
        measured.resolve();
        return await capacity();
      };
      const session = await nextSession();
      await measured.promise;
      await session.hear('hello');
      await session.welcome();
      await session.hear('images');
      await session.hear('status');
      assert.equal(session.heard[0]?.message, 'hello');
      assert.equal(session.heard.length, 3);
    },
  );

  test('beats as often as it was asked to', limit, async () => {
    await using _agent = new TestedAgent();
    const session = await nextSession();
    await session.welcome(30);
    const startedAt = performance.now();
    const sequences: number[] = [];
    for (let i = 0; i < 4; i++) sequences.push((await session.hear('heartbeat')).heartbeat.sequence);
    assert.deepEqual(sequences, [1, 2, 3, 4]);
    assert.ok(performance.now() - startedAt >= 100);
  });

  test('does what it is told, in order, and answers for signals', limit, async () => {
    await using agent = new TestedAgent();
    const { stream, hear } = await nextSession().then((session) => ({
      stream: session.stream,
      hear: async () => (await session.hear('signalResult')).signalResult,
    }));
    const assignment = { allocationId: 'a', tenantId: 't', jobId: 'j', jobName: 'n', specJson: '{}' };
    const more = { stopGraceMs: 0, index: 0, keep: false };
    await stream.write({ message: 'assignment', assignment: { ...assignment, ...more, desired: 'run' } });
    await stream.write({ message: 'complete', complete: {} });
    await stream.write({ message: 'remove', remove: { allocationId: 'b' } });
    for (const allocationId of ['a', 'absent'])
      await stream.write({
        message: 'signal',
        signal: { requestId: allocationId, allocationId, signal: 15 },
      });
    assert.deepEqual(await hear(), { requestId: 'a', errorCode: '', errorMessage: '' });
    assert.deepEqual(await hear(), {
      requestId: 'absent',
      errorCode: 'state.wrong',
      errorMessage: 'It does not run.',
    });
    assert.deepEqual(agent.did, ['begin', 'run a', 'complete', 'remove b', 'signal 15 to a']);
  });
});

describe('when a session is lost', () => {
  test('all that is kept is said again in the next, the newest of each, stored or not', limit, async () => {
    await using agent = new TestedAgent();
    const first = await nextSession();
    await first.welcome();
    statuses.tell('alc-a', { state: 'running' });
    const said = (await first.hear('status')).status;
    const { allocationId, sequence } = said;
    await first.stream.write({ message: 'statusStored', statusStored: { allocationId, sequence } });
    first.break();
    statuses.tell('alc-b', { state: 'pulling' });
    statuses.tell('alc-b', { state: 'exited', exitCode: 3 });
    const second = await nextSession();
    await second.welcome();
    assert.deepEqual((await second.hear('status')).status, said);
    const next = (await second.hear('status')).status;
    assert.deepEqual([next.allocationId, next.state, next.exitCode], ['alc-b', 'exited', 3]);
    assert.ok(next.sequence > said.sequence);
    statuses.tell('alc-a', { state: 'exited' });
    assert.equal((await second.hear('status')).status.state, 'exited');
    assert.equal(agent.lost.length, 1);
  });

  test('because it was refused, the reason is known, and it is tried again', limit, async () => {
    await using agent = new TestedAgent();
    const session = await nextSession();
    const refused = { code: 'join.name-taken', message: 'Another agent joined as one; this is not it.' };
    await session.stream.write({ message: 'refused', refused });
    await nextSession();
    const [error] = agent.lost as CloisterError[];
    assert.deepEqual([error?.code, error?.message], [refused.code, refused.message]);
  });

  test('by an end in order, it is lost all the same', limit, async () => {
    await using agent = new TestedAgent();
    (await nextSession()).stream.end();
    await nextSession();
    assert.equal((agent.lost[0] as CloisterError).code, 'unavailable');
  });

  test('nothing is tried any more once the agent closes, nor held open', limit, async () => {
    const agent = new TestedAgent();
    const session = await nextSession();
    await agent[Symbol.asyncDispose]();
    await session.stream.closed;
    assert.deepEqual(agent.lost, []);
  });
});

test('pauses between attempts double from 0.5 to 10 s, with jitter, and begin anew after a good session', async () => {
  const pauses: number[] = [];
  const closing = new AbortController();
  let nowMs = 0;
  const clock: Clock = { ...systemClock, monotonic: () => nowMs, sleep: async () => {} };
  const good = { close: () => {} } as unknown as LinkSession;
  let attempts = 0;
  await runSessions({
    connect: async () => {
      attempts += 1;
      if (attempts !== 8) throw new CloisterError('unavailable', 'Nobody is there.');
      return good;
    },
    onSession: async () => {
      nowMs += 30_000;
    },
    onLost: (_error, retryInMs) => {
      pauses.push(retryInMs);
      if (pauses.length === 10) closing.abort();
    },
    clock,
    signal: closing.signal,
  });
  const bases = [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000, 500, 1_000, 2_000];
  for (const [i, base] of bases.entries()) {
    const pause = pauses[i] ?? 0;
    assert.ok(pause >= base / 2 && pause <= base, `${i}: ${pause} is not about ${base}`);
  }
});
