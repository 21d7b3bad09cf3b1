// What the host asks the guest to run: START and EXEC, with an OCI config like Docker's.

export interface Command {
  readonly args: readonly string[];
  readonly env?: readonly string[];
  readonly user?: string;
  readonly workingDir?: string;
  readonly tty?: boolean;
  readonly stdin?: boolean;
  readonly volumes?: readonly string[];
  readonly rows?: number;
  readonly columns?: number;
}

const CAPABILITIES = [
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FOWNER',
  'CAP_SETGID',
  'CAP_SETUID',
  'CAP_KILL',
  'CAP_SYS_CHROOT',
];

export function processObject(command: Command): object {
  return {
    terminal: command.tty ?? false,
    user: '@USER@',
    args: command.args,
    env: ['PATH=/usr/bin:/bin', 'HOME=@HOME@', ...(command.env ?? [])],
    cwd: command.workingDir ?? '/',
    capabilities: { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES },
    noNewPrivileges: false,
  };
}

export function request(command: Command): Record<string, unknown> {
  return {
    user: command.user ?? '',
    volumes: command.volumes ?? [],
    workingDir: command.workingDir ?? '/',
    tty: command.tty ?? false,
    stdin: command.stdin ?? false,
    rows: command.rows ?? 24,
    columns: command.columns ?? 80,
    argv0: command.args[0],
    path: '/usr/bin:/bin',
    hasHome: false,
  };
}

export function startRequest(command: Command): object {
  const mount = (destination: string, type: string, source: string, options: string[]) => ({
    destination,
    type,
    source,
    options,
  });
  const config = {
    ociVersion: '1.0.2',
    process: processObject(command),
    root: { path: '/run/workload/rootfs', readonly: false },
    hostname: 'box',
    mounts: [
      mount('/proc', 'proc', 'proc', []),
      mount('/dev', 'tmpfs', 'tmpfs', ['nosuid', 'mode=755', 'size=65536k']),
      mount('/dev/pts', 'devpts', 'devpts', [
        'nosuid',
        'noexec',
        'newinstance',
        'ptmxmode=0666',
        'mode=0620',
        'gid=5',
      ]),
      mount('/dev/shm', 'tmpfs', 'shm', ['nosuid', 'noexec', 'nodev', 'mode=1777', 'size=65536k']),
      mount('/sys', 'sysfs', 'sysfs', ['nosuid', 'noexec', 'nodev', 'ro']),
      mount('/sys/fs/cgroup', 'cgroup', 'cgroup', ['nosuid', 'noexec', 'nodev', 'ro']),
    ],
    linux: {
      cgroupsPath: '/workload',
      namespaces: ['pid', 'ipc', 'uts', 'mount', 'cgroup'].map((type) => ({ type })),
    },
  };
  return { config: JSON.stringify(config), ...request(command) };
}
