// What runs in the guest, as the guest's init and its OCI runtime want to be told: the image's configuration and the
// job's wishes put together as Docker does it. Pure.
//
// The workload has the whole system-call interface: every capability, no seccomp filter, nothing masked or read-only.
// It is alone in its machine; what keeps it there is outside. Volumes are folders on the scratch disk: they hold what
// the image has there, are written by this sandbox alone and go with it, as Docker's anonymous volumes do. They are no
// mounts of their own: the image names their paths, and a link there must not lead a mount out of the container.
import { constants } from 'node:os';
import { CloisterError } from '@cloister/model/errors.ts';
import type { ImageConfig } from '@cloister/model/image.ts';
import type { ExecSpec } from '@cloister/model/stream.ts';
import type { SandboxRequest } from './sandbox.ts';

const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
/** Of Linux 6.1, all of them. */
const CAPABILITIES = [
  'AUDIT_CONTROL',
  'AUDIT_READ',
  'AUDIT_WRITE',
  'BLOCK_SUSPEND',
  'BPF',
  'CHECKPOINT_RESTORE',
  'CHOWN',
  'DAC_OVERRIDE',
  'DAC_READ_SEARCH',
  'FOWNER',
  'FSETID',
  'IPC_LOCK',
  'IPC_OWNER',
  'KILL',
  'LEASE',
  'LINUX_IMMUTABLE',
  'MAC_ADMIN',
  'MAC_OVERRIDE',
  'MKNOD',
  'NET_ADMIN',
  'NET_BIND_SERVICE',
  'NET_BROADCAST',
  'NET_RAW',
  'PERFMON',
  'SETFCAP',
  'SETGID',
  'SETPCAP',
  'SETUID',
  'SYSLOG',
  'SYS_ADMIN',
  'SYS_BOOT',
  'SYS_CHROOT',
  'SYS_MODULE',
  'SYS_NICE',
  'SYS_PACCT',
  'SYS_PTRACE',
  'SYS_RAWIO',
  'SYS_RESOURCE',
  'SYS_TIME',
  'SYS_TTY_CONFIG',
  'WAKE_ALARM',
].map((name) => `CAP_${name}`);

/** As docs/guest-channel.md has START. Throws `sandbox.command-not-found` when there is nothing to run. */
export function startRequest({ image, spec, hostname }: SandboxRequest): object {
  const args = commandLine(image.config, spec.entrypoint, spec.command);
  const env = workloadEnv(image.config, spec.env, hostname, spec.tty);
  const cwd = absolute(spec.workingDir ?? image.config.workingDir);
  const config = {
    ociVersion: '1.0.2',
    process: processObject(args, env, cwd, spec.tty),
    root: { path: '/run/workload/rootfs', readonly: false },
    hostname,
    mounts: MOUNTS,
    linux: {
      cgroupsPath: '/workload',
      namespaces: ['pid', 'ipc', 'uts', 'mount', 'cgroup'].map((type) => ({ type })),
    },
  };
  return {
    config: JSON.stringify(config),
    volumes: image.config.volumes,
    files: ['/etc/hostname', `${hostname}\n`, '/etc/hosts', hosts(hostname)],
    ...guestFields(args, env, cwd, spec.user ?? image.config.user),
    tty: spec.tty,
    stdin: spec.stdin,
    rows: 0,
    columns: 0,
  };
}

/** As docs/guest-channel.md has EXEC: with the workload's environment, user and folder where it names no others. */
export function execRequest({ image, spec, hostname }: SandboxRequest, exec: ExecSpec): object {
  const env = mergeEnv(
    workloadEnv(image.config, spec.env, hostname, exec.tty),
    Object.entries(exec.env).map(([name, value]) => `${name}=${value}`),
  );
  const cwd = absolute(exec.workingDir ?? spec.workingDir ?? image.config.workingDir);
  return {
    process: JSON.stringify(processObject(exec.command, env, cwd, exec.tty)),
    ...guestFields(exec.command, env, cwd, exec.user ?? spec.user ?? image.config.user),
    tty: exec.tty,
    stdin: exec.stdin,
    rows: exec.rows,
    columns: exec.columns,
  };
}

/** Docker's rule: a new entrypoint drops the image's Cmd; an empty one is none. */
export function commandLine(
  config: ImageConfig,
  entrypoint: readonly string[] | undefined,
  command: readonly string[] | undefined,
): string[] {
  const first = entrypoint === undefined ? config.entrypoint : entrypoint.join('') === '' ? [] : entrypoint;
  const rest = command ?? (entrypoint === undefined ? config.cmd : []);
  const args = [...first, ...rest];
  if (args.length === 0) {
    throw new CloisterError(
      'sandbox.command-not-found',
      'The image names no command, and the job gives none.',
    );
  }
  return args;
}

/** The image's variables, then the job's; of two with one name the later counts, at the place of the first. */
export function workloadEnv(
  config: ImageConfig,
  jobEnv: Readonly<Record<string, string>>,
  hostname: string,
  tty: boolean,
): string[] {
  const defaults = [`PATH=${DEFAULT_PATH}`, `HOSTNAME=${hostname}`, ...(tty ? ['TERM=xterm'] : [])];
  return mergeEnv(
    mergeEnv(defaults, config.env),
    Object.entries(jobEnv).map(([name, value]) => `${name}=${value}`),
  );
}

function mergeEnv(env: readonly string[], more: readonly string[]): string[] {
  const byName = new Map<string, string>();
  for (const entry of [...env, ...more]) byName.set(nameOf(entry), entry);
  return [...byName.values()];
}

const nameOf = (entry: string): string => entry.slice(0, entry.indexOf('='));

const absolute = (path: string): string => (path.startsWith('/') ? path : `/${path}`);

/** The guest puts the user and the user's home in, at these very words. */
function processObject(args: readonly string[], env: readonly string[], cwd: string, tty: boolean): object {
  return {
    terminal: tty,
    user: '@USER@',
    args,
    env: hasHome(env) ? env : [...env, 'HOME=@HOME@'],
    cwd,
    capabilities: {
      bounding: CAPABILITIES,
      effective: CAPABILITIES,
      inheritable: CAPABILITIES,
      permitted: CAPABILITIES,
    },
    noNewPrivileges: false,
    rlimits: [{ type: 'RLIMIT_NOFILE', soft: 1_048_576, hard: 1_048_576 }],
  };
}

const hasHome = (env: readonly string[]): boolean => env.some((entry) => entry.startsWith('HOME='));

function guestFields(args: readonly string[], env: readonly string[], cwd: string, user: string): object {
  const path = env.find((entry) => entry.startsWith('PATH='))?.slice('PATH='.length) ?? '';
  return { user, workingDir: cwd, argv0: args[0] ?? '', path, hasHome: hasHome(env) };
}

/** What Docker gives a container without a network. Names are otherwise nobody's business in here. */
const hosts = (hostname: string): string =>
  `127.0.0.1\tlocalhost ${hostname}\n::1\tlocalhost ip6-localhost ip6-loopback ${hostname}\n`;

const mount = (destination: string, type: string, source: string, options: readonly string[]): object => ({
  destination,
  type,
  source,
  options,
});

const MOUNTS = [
  mount('/proc', 'proc', 'proc', ['nosuid', 'noexec', 'nodev']),
  mount('/dev', 'tmpfs', 'tmpfs', ['nosuid', 'strictatime', 'mode=755', 'size=65536k']),
  mount('/dev/pts', 'devpts', 'devpts', [
    'nosuid',
    'noexec',
    'newinstance',
    'ptmxmode=0666',
    'mode=0620',
    'gid=5',
  ]),
  mount('/dev/shm', 'tmpfs', 'shm', ['nosuid', 'noexec', 'nodev', 'mode=1777', 'size=65536k']),
  mount('/dev/mqueue', 'mqueue', 'mqueue', ['nosuid', 'noexec', 'nodev']),
  mount('/sys', 'sysfs', 'sysfs', ['nosuid', 'noexec', 'nodev']),
  mount('/sys/fs/cgroup', 'cgroup', 'cgroup', ['nosuid', 'noexec', 'nodev', 'relatime']),
];

/** "SIGTERM", "term", "RTMIN+3" or a number to its number; SIGTERM for what is none. */
export function signalNumber(text: string): number {
  const SIGRTMIN = 34;
  const SIGRTMAX = 64;
  const name = text.toUpperCase().replace(/^SIG/, '');
  const [, base, sign, distance] = /^(RTMIN|RTMAX)(?:([+-])(\d{1,2}))?$/.exec(name) ?? [];
  if (base) {
    const offset = Number(`${sign ?? '+'}${distance ?? 0}`);
    const number = (base === 'RTMIN' ? SIGRTMIN : SIGRTMAX) + offset;
    return number >= SIGRTMIN && number <= SIGRTMAX ? number : constants.signals.SIGTERM;
  }
  const number = /^\d{1,2}$/.test(name) ? Number(name) : constants.signals[`SIG${name}` as NodeJS.Signals];
  return number !== undefined && number >= 1 && number <= SIGRTMAX ? number : constants.signals.SIGTERM;
}
