// The API over HTTPS: one route for each line of the table, with its access control, validation and kind of reply.
import { Readable } from 'node:stream';
import { API, type ApiName, type Route } from '@cloister/model/api.ts';
import { CloisterError, describeError } from '@cloister/model/errors.ts';
import { MAX_STREAM_PAYLOAD_BYTES } from '@cloister/model/stream.ts';
import websocket, { type WebSocket } from '@fastify/websocket';
import { type FastifyReply, type FastifyRequest, fastify } from 'fastify';
import type { TSchema } from 'typebox';
import { allocationHandlers } from './api/allocations.ts';
import type { Call, Parts } from './api/call.ts';
import { eventHandlers } from './api/events.ts';
import { imageHandlers } from './api/images.ts';
import { jobHandlers } from './api/jobs.ts';
import { nodeHandlers } from './api/nodes.ts';
import { tenantHandlers } from './api/tenants.ts';
import { authenticate, type Caller } from './auth.ts';
import { openApiDocument } from './openapi.ts';
import { asCloisterError, problemOf } from './problem.ts';

const MAX_BODY_BYTES = 1_048_576;
const MAX_CONNECTIONS = 10_000;
const VERSION = '0.1.0';

type Serve = (socket: WebSocket) => Promise<void>;
type AnyHandler = (call: Call<ApiName>) => unknown;

export interface HttpApi {
  /** host:port, with the port that it got. */
  readonly address: string;
  /** Ends open streams, and waits for requests under way. */
  close(): Promise<void>;
}

export async function startHttpApi(
  parts: Parts,
  options: { host: string; port: number; certificatePem: string; keyPem: string },
): Promise<HttpApi> {
  const { logger } = parts.cluster;
  const closing = new AbortController();
  const app = makeApp(options);
  app.server.maxConnections = MAX_CONNECTIONS;
  await app.register(websocket, { options: { maxPayload: MAX_STREAM_PAYLOAD_BYTES + 1 } });

  app.addContentTypeParser('application/json', { parseAs: 'string' }, (_request, body, done) => {
    if (body === '') return done(null, undefined);
    try {
      done(null, JSON.parse(body as string));
    } catch {
      done(new CloisterError('request.invalid', 'The body is not JSON.'));
    }
  });
  app.addHook('onSend', async (_request, reply) => {
    reply.header('x-content-type-options', 'nosniff');
    reply.header('cache-control', 'no-store');
    reply.header('strict-transport-security', 'max-age=31536000');
  });
  const sendProblem = async (error: unknown, request: FastifyRequest, reply: FastifyReply): Promise<void> => {
    let known = asCloisterError(error);
    if (!known) {
      logger.error(
        { path: request.routeOptions.url, error: describeError(error), stack: (error as Error).stack },
        'a request failed',
      );
      known = new CloisterError('internal', 'The request failed for a reason that is not yours.');
    }
    const problem = problemOf(known);
    // As bytes: what is said of an error is ours already, and no serializer should trip over it.
    await reply.code(problem.status).type('application/problem+json').send(JSON.stringify(problem));
  };
  app.setErrorHandler(sendProblem);
  app.setNotFoundHandler((request, reply) =>
    sendProblem(new CloisterError('not-found', 'There is nothing at this address.'), request, reply),
  );
  app.get('/v1/openapi.json', async () => openApiDocument(VERSION));

  const handlers = handlersOf(parts);
  for (const [name, route] of Object.entries(API) as [ApiName, Route][]) {
    addRoute(app, parts, route, handlers[name] as AnyHandler, closing.signal);
  }
  await app.listen({ host: options.host, port: options.port });
  const bound = app.server.address();
  const port = typeof bound === 'object' && bound ? bound.port : options.port;
  return {
    address: options.host.includes(':') ? `[${options.host}]:${port}` : `${options.host}:${port}`,
    close: async () => {
      closing.abort(new CloisterError('unavailable', 'The control plane is closing.'));
      for (const client of app.websocketServer.clients) client.close(1001);
      await app.close();
      for (const client of app.websocketServer.clients) client.terminate();
    },
  };
}

type App = ReturnType<typeof makeApp>;

function makeApp(options: { certificatePem: string; keyPem: string }) {
  return fastify({
    https: { cert: options.certificatePem, key: options.keyPem, minVersion: 'TLSv1.2' },
    bodyLimit: MAX_BODY_BYTES,
    requestTimeout: 60_000,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 128 },
    // Bodies are what the schema says, or refused; queries are text, which coerceQuery() reads.
    ajv: {
      customOptions: {
        coerceTypes: false,
        removeAdditional: false,
        useDefaults: true,
        allErrors: true,
        strict: false,
      },
    },
  });
}

function handlersOf(parts: Parts) {
  return {
    ...jobHandlers(parts),
    ...allocationHandlers(parts),
    ...eventHandlers(parts),
    ...nodeHandlers(parts),
    ...imageHandlers(parts),
    ...tenantHandlers(parts),
  };
}

function addRoute(app: App, parts: Parts, route: Route, handle: AnyHandler, closing: AbortSignal): void {
  const schema = {
    ...(route.params ? { params: route.params } : {}),
    ...(route.query ? { querystring: route.query } : {}),
    ...(route.body ? { body: route.body } : {}),
  };
  const callers = new WeakMap<FastifyRequest, Caller>();
  const serves = new WeakMap<FastifyRequest, Serve>();
  const callOf = (request: FastifyRequest, reply: FastifyReply): Call<ApiName> => {
    const gone = new AbortController();
    reply.raw.once('close', () => gone.abort(new CloisterError('unavailable', 'The client went away.')));
    return {
      caller: callers.get(request) as Caller, // undefined for nobody, where nobody looks
      params: request.params as Record<string, string>,
      query: request.query as Call<ApiName>['query'],
      body: request.body as Call<ApiName>['body'],
      signal: AbortSignal.any([gone.signal, closing]),
      from: request.ip,
    };
  };
  const common = {
    method: route.method,
    url: route.path,
    schema,
    onRequest: async (request: FastifyRequest) => {
      if (route.access === 'none') return;
      const caller = authenticate(parts.cluster, request.headers.authorization);
      if (route.access === 'operator' && caller.scope !== 'operator') {
        throw new CloisterError('auth.forbidden', "This is for operators, and the token is a tenant's.");
      }
      callers.set(request, caller);
    },
    preValidation: async (request: FastifyRequest) => {
      if (route.body) request.body ??= {};
      if (route.query) coerceQuery(request.query as Record<string, unknown>, route.query);
    },
  };
  if (route.reply.kind === 'websocket') {
    app.route({
      ...common,
      websocket: true,
      // Before the upgrade, so that what is wrong is a plain answer with a status.
      preHandler: async (request: FastifyRequest, reply: FastifyReply) => {
        if (!request.ws) throw new CloisterError('request.invalid', 'This address is for WebSockets.');
        serves.set(request, (await handle(callOf(request, reply))) as Serve);
      },
      handler: (socket: WebSocket, request: FastifyRequest) => {
        const serve = serves.get(request);
        serve?.(socket).catch((error: unknown) => {
          parts.cluster.logger.warn({ error: describeError(error) }, 'a WebSocket failed');
          socket.terminate();
        });
      },
    } as never);
    return;
  }
  app.route({
    ...common,
    handler: async (request: FastifyRequest, reply: FastifyReply) => {
      const call = callOf(request, reply);
      if (route.reply.kind === 'stream') return await sendStream(parts, call, handle, reply);
      const result = await handle(call);
      if (route.reply.kind === 'json') return await reply.code(route.reply.status).send(result);
      return await reply.code(204).send();
    },
  });
}

/** NDJSON, no faster than the client reads. An error in the midst ends the connection without the final chunk. */
async function sendStream(
  parts: Parts,
  call: Call<ApiName>,
  handle: AnyHandler,
  reply: FastifyReply,
): Promise<FastifyReply> {
  const leave = parts.streams.enter(call.caller.tenant.id);
  try {
    const items = (await handle(call)) as AsyncIterable<unknown>;
    const body = Readable.from(toLines(items), { objectMode: false, highWaterMark: 65_536 });
    body.once('close', leave);
    reply.raw.once('close', () => body.destroy());
    reply.raw.once('close', leave);
    reply.type('application/x-ndjson');
    // At once, so that a client knows that it was let in, whenever the first line comes; but with all headers.
    reply.raw.once('pipe', () => reply.raw.flushHeaders());
    return await reply.send(body);
  } catch (error) {
    leave();
    throw error;
  }
}

async function* toLines(items: AsyncIterable<unknown>): AsyncGenerator<Buffer> {
  for await (const item of items) yield Buffer.from(`${JSON.stringify(item)}\n`);
}

/** Query values are text. Those that the schema wants as numbers or booleans become them, if they can. */
function coerceQuery(query: Record<string, unknown>, schema: TSchema): void {
  const { properties = {} } = schema as { properties?: Record<string, { type?: string }> };
  for (const [name, value] of Object.entries(query)) {
    if (typeof value !== 'string') continue;
    const type = Object.hasOwn(properties, name) ? properties[name]?.type : undefined;
    if (type === 'integer' && /^-?\d{1,15}$/.test(value)) query[name] = Number(value);
    if (type === 'boolean' && (value === 'true' || value === 'false')) query[name] = value === 'true';
  }
}
