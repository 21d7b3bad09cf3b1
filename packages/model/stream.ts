// The frames of attach and exec, over a WebSocket: every binary message is one channel byte and its payload.
// Text messages are not used, but for the first message of exec, which is an ExecSpec.
import Type, { type Static } from 'typebox';
import { ReasonSchema } from './schema.ts';

export const CHANNEL = { stdin: 0, stdout: 1, stderr: 2, control: 3 } as const;

/** Payload of one message at most; more is a protocol error. */
export const MAX_STREAM_PAYLOAD_BYTES = 65_536;

export const ExecSpecSchema = Type.Object(
  {
    command: Type.Array(Type.String({ maxLength: 65_536, pattern: '^[^\\u0000]*$' }), {
      minItems: 1,
      maxItems: 4096,
    }),
    env: Type.Record(Type.String({ pattern: '^[^=\\u0000]{1,256}$' }), Type.String({ maxLength: 65_536 }), {
      additionalProperties: false,
      default: {},
      maxProperties: 1024,
    }),
    user: Type.Optional(Type.String({ maxLength: 128 })),
    workingDir: Type.Optional(Type.String({ maxLength: 4096, pattern: '^/' })),
    tty: Type.Boolean({ default: false }),
    stdin: Type.Boolean({ default: false }),
    rows: Type.Integer({ minimum: 0, maximum: 65_535, default: 0 }),
    columns: Type.Integer({ minimum: 0, maximum: 65_535, default: 0 }),
  },
  { additionalProperties: false },
);
export type ExecSpec = Static<typeof ExecSpecSchema>;

/** JSON on the control channel. From the client: resize, stdin-eof, signal. From the server: started, gap, exit, error. */
export const StreamControlSchema = Type.Union([
  Type.Object({
    type: Type.Literal('resize'),
    rows: Type.Integer({ minimum: 1, maximum: 65_535 }),
    columns: Type.Integer({ minimum: 1, maximum: 65_535 }),
  }),
  Type.Object({ type: Type.Literal('stdin-eof') }),
  Type.Object({ type: Type.Literal('signal'), signal: Type.Integer({ minimum: 1, maximum: 64 }) }),
  Type.Object({ type: Type.Literal('started') }),
  Type.Object({
    type: Type.Literal('gap'),
    bytes: Type.Integer({ description: 'Output that was rotated away before it could be sent.' }),
  }),
  Type.Object({
    type: Type.Literal('exit'),
    exitCode: Type.Integer(),
    signal: Type.Optional(Type.Integer()),
    oomKilled: Type.Optional(Type.Boolean()),
  }),
  Type.Object({ type: Type.Literal('error'), reason: ReasonSchema }),
]);
export type StreamControl = Static<typeof StreamControlSchema>;

/** One line of the logs as NDJSON. */
export const LogLineSchema = Type.Object({
  at: Type.Integer({ description: "Milliseconds since the Unix epoch, by the node's clock." }),
  stream: Type.Union([Type.Literal('stdout'), Type.Literal('stderr')]),
  data: Type.String({ description: 'Base64. Chunks are as they were written, not lines.' }),
});
export type LogLine = Static<typeof LogLineSchema>;
