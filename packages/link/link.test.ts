// The link as a whole: two ends in one process, over real TLS on loopback.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { after, before, test } from 'node:test';
import * as tls from 'node:tls';
import { systemClock } from '@cloister/kit/clock.ts';
import { silentLogger } from '@cloister/kit/log.ts';
import { CloisterError } from '@cloister/model/errors.ts';
import { newNodeId } from '@cloister/model/ids.ts';
import { connectLink, runSessions } from './clientLink.ts';
import type { LinkStream } from './linkStream.ts';
import type { AgentMessage, ServerMessage, StreamFrame } from './messages.ts';
import {
  createAuthority,
  createNodeRequest,
  issueNodeCertificate,
  issueServerCertificate,
  type KeyAndCertificate,
  type Validity,
} from './pki.ts';
import { type AgentPeer, type ServerLink, startServerLink } from './serverLink.ts';

type Frames = LinkStream<StreamFrame, StreamFrame>;
type Session = LinkStream<AgentMessage, ServerMessage>;

const nodeId = newNodeId();
let authority: KeyAndCertificate;
let link: ServerLink;
let onSession: (session: Session, peer: AgentPeer) => Promise<void> = async () => {};
let onStream: (frames: Frames, streamId: string) => Promise<void> = async () => {};

before(async () => {
  authority = await createAuthority();
  const server = await issueServerCertificate(authority, ['localhost', '127.0.0.1']);
  link = await startServerLink({
    ...server,
    host: '127.0.0.1',
    port: 0,
    caPem: authority.certificatePem,
    logger: silentLogger,
    onSession: (session, peer) => onSession(session, peer),
    onStream: (frames, streamId) => onStream(frames, streamId),
  });
});
after(() => link.close());

async function nodeIdentity(signer = authority, times: Validity = {}) {
  const { csrPem, keyPem } = await createNodeRequest();
  return { keyPem, certificatePem: await issueNodeCertificate(signer, csrPem, nodeId, times) };
}

const dial = async (identity: { keyPem: string; certificatePem: string }) =>
  await connectLink({ address: link.address, caPem: authority.certificatePem, ...identity });

/** Sessions that last until the agent goes. */
const stay = async (session: Session): Promise<void> => {
  for await (const _ of session);
};

test('the server knows the node by its certificate, and messages arrive as they were sent', async () => {
  const seen: unknown[] = [];
  onSession = async (session, peer) => {
    seen.push(peer.nodeId);
    for await (const message of session) {
      seen.push(message);
      await session.write({
        message: 'welcome',
        welcome: { heartbeatIntervalMs: 5000, clockMs: 1_780_000_000_123 },
      });
      if (message.message === 'status') return;
    }
  };
  const session = await dial(await nodeIdentity());
  const status = {
    allocationId: 'alc-x',
    sequence: 7,
    state: 'exited',
    exitCode: 0,
    oomKilled: false,
    reasonCode: '',
    reasonMessage: '',
    imageDigest: '',
    timelineJson: '{}',
  };
  await session.send({ message: 'heartbeat', heartbeat: { sequence: 2 ** 40 } });
  await session.send({ message: 'status', status });
  const answers: ServerMessage[] = [];
  for await (const message of session) answers.push(message);
  assert.equal(await session.closed, undefined);
  assert.equal(answers.length, 2);
  assert.deepEqual(answers[0], {
    message: 'welcome',
    welcome: { heartbeatIntervalMs: 5000, clockMs: 1_780_000_000_123 },
  });
  const [id, heartbeat, last] = JSON.parse(JSON.stringify(seen));
  assert.equal(id, nodeId);
  assert.deepEqual(heartbeat, { message: 'heartbeat', heartbeat: { sequence: 2 ** 40 } });
  assert.equal(last.status.exitCode, 0, 'an exit code of 0 is there, not left out');
  assert.equal(last.status.signal, undefined);
});

test('who has no certificate of ours is not let in', async () => {
  let sessions = 0;
  onSession = async () => {
    sessions += 1;
  };
  const foreign = await createAuthority();
  const day = 86_400_000;
  const expired = { notBefore: new Date(Date.now() - 3 * day), notAfter: new Date(Date.now() - day) };
  const impostors = {
    'signed by another authority': await nodeIdentity(foreign),
    expired: await nodeIdentity(authority, expired),
    "the control plane's own": await issueServerCertificate(authority, ['localhost']),
  };
  for (const [name, identity] of Object.entries(impostors)) {
    await assert.rejects(dial(identity), CloisterError, name);
  }
  await assert.rejects(dial({ keyPem: '', certificatePem: '' }), Error, 'none at all');
  assert.equal(sessions, 0);
});

test("an agent talks to no server but its own authority's", async () => {
  onSession = stay;
  const foreign = await createAuthority();
  const identity = await nodeIdentity();
  await assert.rejects(
    connectLink({ address: link.address, caPem: foreign.certificatePem, ...identity }),
    (error: CloisterError) => error.code === 'unavailable' && /certificate/i.test(error.message),
  );
});

test('a dial that nobody answers is given up as soon as sessions are to end', {
  timeout: 8_000,
}, async () => {
  const silent = createServer();
  await once(silent.listen(0, '127.0.0.1'), 'listening');
  const { port } = silent.address() as { port: number };
  const identity = await nodeIdentity();
  const closing = new AbortController();
  const dialled = once(silent, 'connection');
  const running = runSessions({
    connect: (signal) =>
      connectLink({ address: `127.0.0.1:${port}`, caPem: authority.certificatePem, ...identity, signal }),
    onSession: async () => assert.fail('there is no session'),
    onLost: (error) => assert.fail(`nothing was lost: ${error}`),
    clock: systemClock,
    signal: closing.signal,
  });
  const [socket] = (await dialled) as [Socket];
  closing.abort();
  await running;
  socket.destroy();
  silent.close();
});

test('the server speaks TLS 1.3 and nothing older', async () => {
  const { certificatePem, keyPem } = await nodeIdentity();
  const port = Number(link.address.split(':')[1]);
  const handshake = async (maxVersion: 'TLSv1.2' | 'TLSv1.3'): Promise<void> => {
    const identity = { ca: authority.certificatePem, cert: certificatePem, key: keyPem };
    const socket = tls.connect({ host: '127.0.0.1', port, ...identity, maxVersion, ALPNProtocols: ['h2'] });
    try {
      await once(socket, 'secureConnect');
    } finally {
      socket.destroy();
    }
  };
  await handshake('TLSv1.3');
  await assert.rejects(handshake('TLSv1.2'));
});

test("an error of the session's handler reaches the agent with its code", async () => {
  onSession = async () => {
    throw new CloisterError('join.name-taken', 'Another machine has this name.');
  };
  const session = await dial(await nodeIdentity()).catch((error: CloisterError) => error);
  const error = session instanceof CloisterError ? session : await session.closed;
  assert.equal(error?.code, 'join.name-taken');
  assert.equal(error?.message, 'Another machine has this name.');
});

test('a closed session ends its streams, and writing to them says so', async () => {
  onSession = stay;
  onStream = async (frames) => {
    for await (const _ of frames);
  };
  const session = await dial(await nodeIdentity());
  const stream = await session.openStream('one');
  session.close();
  await stream.closed;
  await assert.rejects(stream.write({ frame: 'controlJson', controlJson: '{}' }), { code: 'unavailable' });
});

for (const direction of ['from the agent', 'to the agent'] as const) {
  test(`100 MB ${direction} to a slow reader wait at the writer, not in memory`, {
    timeout: 60_000,
  }, async () => {
    onSession = stay;
    const data = Buffer.alloc(65_536, 7);
    const frames = 1600;
    const opened = Promise.withResolvers<Frames>();
    const done = Promise.withResolvers<void>();
    onStream = async (stream) => {
      opened.resolve(stream);
      await done.promise;
    };
    const session = await dial(await nodeIdentity());
    const agentSide = await session.openStream('bulk');
    const serverSide = await opened.promise;
    const [writer, reader] =
      direction === 'from the agent' ? [agentSide, serverSide] : [serverSide, agentSide];

    let written = 0;
    const writing = (async () => {
      for (; written < frames; written++)
        await writer.write({ frame: 'output', output: { channel: 1, atMs: 1, data } });
    })();
    const stuckAt = await whenStill(() => written);
    assert.ok(stuckAt < 100, `${stuckAt} frames of 64 KiB were taken though nobody read`);

    let bytes = 0;
    let ahead = 0;
    for await (const frame of reader) {
      if (frame.frame === 'output') bytes += frame.output.data.length;
      ahead = Math.max(ahead, written - bytes / data.length);
      if (bytes === frames * data.length) break;
    }
    await writing;
    assert.ok(ahead < 100, `the writer was ${ahead} frames ahead`);
    done.resolve();
    session.close();
  });
}

test('a reader that gives up lets the writer go', { timeout: 20_000 }, async () => {
  onSession = stay;
  const opened = Promise.withResolvers<Frames>();
  onStream = async (stream) => {
    opened.resolve(stream);
    await stream.closed;
  };
  const session = await dial(await nodeIdentity());
  const stream = await session.openStream('bulk');
  const writing = (async () => {
    for (;;) await stream.write({ frame: 'stdin', stdin: Buffer.alloc(65_536) });
  })();
  (await opened.promise).cancel(new CloisterError('not-found', 'Nobody wants this.'));
  await assert.rejects(writing, { code: 'not-found' });
  session.close();
});

/** The value once it has not changed for 20 turns of 10 ms: there is no event for "stuck". */
async function whenStill(read: () => number): Promise<number> {
  let last = -1;
  for (let still = 0; still < 20; ) {
    await new Promise((resolve) => setTimeout(resolve, 10));
    const now = read();
    still = now === last ? still + 1 : 0;
    last = now;
  }
  return last;
}
