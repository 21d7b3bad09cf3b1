// The gRPC side of proto/link.proto: method definitions and the options that both ends of a connection share.
import { fileURLToPath } from 'node:url';
import type { MethodDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { AgentMessage, ServerMessage, StreamFrame } from './messages.ts';

/** One message, in either direction. */
export const MAX_MESSAGE_BYTES = 4 * 1024 * 1024;

/**
 * A peer that went away without a word is noticed after 15 s at the latest, on both sides: a ping every 10 s, and
 * 5 s for its answer. The session stream is always open, so the connection is never idle.
 */
export const CHANNEL_OPTIONS = {
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.keepalive_permit_without_calls': 1,
  'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
  'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
} as const;

export interface LinkMethods {
  readonly session: MethodDefinition<AgentMessage, ServerMessage>;
  readonly stream: MethodDefinition<StreamFrame, StreamFrame>;
}

let methods: LinkMethods | undefined;

/** Read from the .proto once a process. */
export function linkMethods(): LinkMethods {
  methods ??= loadMethods();
  return methods;
}

function loadMethods(): LinkMethods {
  const definition = loadSync(fileURLToPath(new URL('../../proto/link.proto', import.meta.url)), {
    keepCase: false,
    longs: Number,
    defaults: true,
    oneofs: true,
  });
  const service = definition['cloister.link.v1.Link'] as unknown as Record<string, unknown> | undefined;
  const session = service?.Session;
  const stream = service?.Stream;
  if (!session || !stream) throw new Error('proto/link.proto has no service Link with Session and Stream.');
  return { session, stream } as LinkMethods;
}
