// The messages of proto/link.proto as TypeScript sees them, on both sides: `message` (or `frame`) says which field
// of the oneof is set. Fields that carry JSON are strings here; whoever reads one checks it with parseJson().

export const PROTOCOL_VERSION = 1;

export interface Hello {
  readonly instanceId: string;
  readonly factsJson: string;
  readonly capacityJson: string;
  readonly clockMs: number;
  readonly protocolVersion: number;
}

export interface AllocationStatus {
  readonly allocationId: string;
  readonly sequence: number;
  readonly state: string;
  readonly exitCode?: number;
  readonly signal?: number;
  readonly oomKilled: boolean;
  readonly reasonCode: string;
  readonly reasonMessage: string;
  readonly imageDigest: string;
  readonly timelineJson: string;
}

export interface SignalResult {
  readonly requestId: string;
  /** "" when it was delivered. */
  readonly errorCode: string;
  readonly errorMessage: string;
}

export type AgentMessage =
  | { readonly message: 'hello'; readonly hello: Hello }
  | { readonly message: 'heartbeat'; readonly heartbeat: { readonly sequence: number } }
  | { readonly message: 'status'; readonly status: AllocationStatus }
  | { readonly message: 'images'; readonly images: { readonly imageJson: readonly string[] } }
  | { readonly message: 'signalResult'; readonly signalResult: SignalResult };

export interface Assignment {
  readonly allocationId: string;
  readonly tenantId: string;
  readonly jobId: string;
  readonly jobName: string;
  readonly specJson: string;
  /** run | stop | kill */
  readonly desired: string;
  readonly stopGraceMs: number;
  readonly index: number;
  readonly keep: boolean;
}

export interface LogsRequest {
  readonly allocationId: string;
  readonly follow: boolean;
  readonly tailBytes?: number;
  readonly tailLines?: number;
  readonly sinceMs?: number;
}

export type StreamPurpose =
  | { readonly purpose: 'logs'; readonly logs: LogsRequest }
  | {
      readonly purpose: 'attach';
      readonly attach: { readonly allocationId: string; readonly stdin: boolean };
    }
  | { readonly purpose: 'exec'; readonly exec: { readonly allocationId: string; readonly specJson: string } }
  | { readonly purpose: 'pull'; readonly pull: { readonly reference: string } };

export type OpenStream = { readonly streamId: string } & StreamPurpose;

export type ServerMessage =
  | {
      readonly message: 'welcome';
      readonly welcome: { readonly heartbeatIntervalMs: number; readonly clockMs: number };
    }
  | { readonly message: 'assignment'; readonly assignment: Assignment }
  | { readonly message: 'complete'; readonly complete: Record<string, never> }
  | { readonly message: 'remove'; readonly remove: { readonly allocationId: string } }
  | { readonly message: 'openStream'; readonly openStream: OpenStream }
  | {
      readonly message: 'signal';
      readonly signal: { readonly requestId: string; readonly allocationId: string; readonly signal: number };
    }
  | {
      readonly message: 'statusStored';
      readonly statusStored: { readonly allocationId: string; readonly sequence: number };
    }
  | { readonly message: 'refused'; readonly refused: { readonly code: string; readonly message: string } };

/** channel: 1 stdout, 2 stderr, as CHANNEL of the model has them. */
export interface Output {
  readonly channel: number;
  readonly atMs: number;
  readonly data: Buffer;
}

export type StreamFrame =
  | { readonly frame: 'open'; readonly open: string }
  | { readonly frame: 'output'; readonly output: Output }
  | { readonly frame: 'stdin'; readonly stdin: Buffer }
  | { readonly frame: 'controlJson'; readonly controlJson: string }
  | { readonly frame: 'progressJson'; readonly progressJson: string };
