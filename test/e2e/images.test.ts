// What an image's configuration says means in a sandbox what it means in Docker.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { Allocation } from '@cloister/model/job.ts';
import { EndToEnd } from './fixture.ts';

let e2e: EndToEnd;
before(async () => {
  e2e = await EndToEnd.start();
});
after(async () => await e2e[Symbol.asyncDispose]());

async function output(spec: Record<string, unknown>): Promise<string> {
  const allocation = await e2e.run(spec);
  assert.equal(allocation.state, 'exited', JSON.stringify(allocation.reason));
  return await e2e.logs(allocation.id);
}

describe('an image with everything configured', () => {
  let image: string;
  before(async () => {
    image = await e2e.push('configured', {
      config: {
        Entrypoint: [
          'sh',
          '-c',
          'echo "args: $0 $*"; echo "env: $COLOUR $HOME"; echo "at: $(pwd)"; echo "as: $(id -u):$(id -g)"; ls -ld /data; cat /data/seed; echo more > /data/new && cat /data/new',
        ],
        Cmd: ['one', 'two'],
        Env: ['PATH=/bin', 'COLOUR=blue'],
        User: 'web:staff',
        WorkingDir: '/srv/app',
        Volumes: { '/data': {} },
      },
      files: [
        { path: 'etc/passwd', content: 'root:x:0:0::/root:/bin/sh\nweb:x:1001:1001::/home/web:/bin/sh\n' },
        { path: 'etc/group', content: 'root:x:0:\nweb:x:1001:\nstaff:x:50:\n' },
        { path: 'data', type: 'folder', mode: 0o777 },
        { path: 'data/seed', content: 'seeded\n' },
      ],
    });
  });

  test('is run with its own words, as its own user, in its own folder, with its volume filled', async () => {
    const text = await output({ image });
    assert.match(text, /^args: one two$/m);
    assert.match(text, /^env: blue \/home\/web$/m);
    assert.match(text, /^at: \/srv\/app$/m);
    assert.match(text, /^as: 1001:50$/m);
    assert.match(text, /^seeded\nmore$/m);
  });

  test('has its Cmd replaced by a command, and both by an entrypoint', async () => {
    assert.match(await output({ image, command: ['three'] }), /^args: three $/m);
    assert.equal(await output({ image, entrypoint: ['echo'], command: ['only', 'this'] }), 'only this\n');
  });

  test("has its variables changed and its user replaced by the job's", async () => {
    const text = await output({ image, env: { COLOUR: 'red' }, user: '0' });
    assert.match(text, /^env: red \/root$/m);
    assert.match(text, /^as: 0:0$/m);
  });
});

test('an image is stopped by the signal that it names', async () => {
  const image = await e2e.push('polite', {
    config: {
      Cmd: ['sh', '-c', 'trap "echo told; exit 8" QUIT; echo up; while :; do sleep 0.1; done'],
      StopSignal: 'SIGQUIT',
    },
  });
  const id = await e2e.submit({ image, name: 'polite' });
  await e2e.until(id, ({ timeline }) => timeline.firstOutputAt !== undefined);
  await e2e.cluster.client.stopJob('polite');
  const allocation = await e2e.ended(id);
  assert.deepEqual([allocation.state, allocation.exitCode], ['exited', 8]);
  assert.equal(await e2e.logs(id), 'up\ntold\n');
});

test('an image is named by tag and by digest, and one digest is one block image', async () => {
  const first: Allocation = await e2e.run({ command: ['true'] });
  const digest = first.imageDigest ?? '';
  assert.match(digest, /^sha256:[0-9a-f]{64}$/);
  const byDigest = await e2e.run({ image: `${e2e.registry.host}/busybox@${digest}`, command: ['true'] });
  assert.deepEqual([byDigest.state, byDigest.imageDigest], ['exited', digest]);
});

test('the container has the files and devices that programs expect, and can use the machine as it likes', async () => {
  const checks = [
    'test -c /dev/null && test -c /dev/urandom && test -c /dev/tty && test -d /dev/pts && test -d /dev/shm',
    'mkdir /mnt && mount -t tmpfs none /mnt && touch /mnt/x && umount /mnt',
    'mknod /tmp/node c 1 3 && echo x > /tmp/node',
    'mkdir /sys/fs/cgroup/mine && rmdir /sys/fs/cgroup/mine',
    'echo 1 > /proc/sys/vm/overcommit_memory',
    'ip link set lo up && ip addr show lo | grep -q UP',
    'chroot / true && unshare -m true',
    'test "$(cat /proc/sys/kernel/hostname)" = "$HOSTNAME"',
    'grep -q Seccomp:.*0 /proc/self/status && grep -q NoNewPrivs:.*0 /proc/self/status',
    'test "$(cat /etc/hostname)" = "$HOSTNAME" && grep -q "^127.0.0.1.*localhost.*$HOSTNAME" /etc/hosts',
    'date -s 2030-01-01 > /dev/null',
  ];
  const script = checks.map((check, i) => `(${check}) || echo "failed: ${i}"`).join('\n');
  assert.equal(await output({ command: ['sh', '-c', `${script}\necho done`] }), 'done\n');
});
