// Every command, in the order of the help. A command's file is loaded when it is called.
import type { Command } from './command.ts';

export interface Listing {
  readonly summary: string;
  load(): Promise<Command>;
}

export const COMMANDS: Readonly<Record<string, Listing>> = {
  run: {
    summary: 'Run an image in a machine of its own.',
    load: async () => (await import('./commands/run.ts')).run,
  },
  ps: { summary: 'List jobs.', load: async () => (await import('./commands/ps.ts')).ps },
  logs: {
    summary: 'Print what a workload wrote.',
    load: async () => (await import('./commands/logs.ts')).logs,
  },
  exec: {
    summary: 'Run one more process in a running sandbox.',
    load: async () => (await import('./commands/exec.ts')).exec,
  },
  stop: {
    summary: 'End jobs: their stop signal, a grace period, then a kill.',
    load: async () => (await import('./commands/stop.ts')).stop,
  },
  kill: {
    summary: 'End jobs at once, or send them a signal.',
    load: async () => (await import('./commands/kill.ts')).kill,
  },
  rm: {
    summary: 'Remove jobs that ended, with their logs.',
    load: async () => (await import('./commands/rm.ts')).rm,
  },
  inspect: {
    summary: 'Print all that is known of a job, an allocation or a node.',
    load: async () => (await import('./commands/inspect.ts')).inspect,
  },
  events: {
    summary: 'Print what happened.',
    load: async () => (await import('./commands/events.ts')).events,
  },
  images: {
    summary: 'List the images that the nodes have.',
    load: async () => (await import('./commands/images.ts')).images,
  },
  pull: {
    summary: 'Pull an image to the nodes before it is needed.',
    load: async () => (await import('./commands/pull.ts')).pull,
  },
  nodes: {
    summary: 'List the machines; cordon, uncordon, remove them; let new ones join.',
    load: async () => (await import('./commands/nodes.ts')).nodes,
  },
  tenants: {
    summary: 'List and make tenants.',
    load: async () => (await import('./commands/tenants.ts')).tenants,
  },
  tokens: {
    summary: 'List, make and revoke tokens.',
    load: async () => (await import('./commands/tokens.ts')).tokens,
  },
  whoami: {
    summary: 'Print whose credential this is.',
    load: async () => (await import('./commands/whoami.ts')).whoami,
  },
  version: {
    summary: 'Print the versions of this program and of the cluster.',
    load: async () => (await import('./commands/version.ts')).version,
  },
  help: {
    summary: 'Print help, of all or of one command.',
    load: async () => (await import('./commands/help.ts')).help,
  },
};

/** Other names that people try. */
export const ALIASES: Readonly<Record<string, string>> = {
  node: 'nodes',
  tenant: 'tenants',
  token: 'tokens',
  ls: 'ps',
};
