// The OpenAPI 3.1 document of the API, printed from the same table that the routes come from.
import { API, ProblemSchema, type Route } from '@cloister/model/api.ts';
import { ERROR_CODES } from '@cloister/model/errors.ts';
import type { TSchema } from 'typebox';

interface ObjectSchema {
  readonly properties?: Readonly<Record<string, TSchema>>;
  readonly required?: readonly string[];
}

export function openApiDocument(version: string): Record<string, unknown> {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const [name, route] of Object.entries(API)) {
    const path = route.path.replace(/:(\w+)/g, '{$1}');
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(name, route) };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Cloister',
      version,
      description: `Runs Docker images, each in a machine of its own.\n\nErrors have one of the codes: ${Object.keys(ERROR_CODES).join(', ')}.`,
    },
    paths,
    components: {
      securitySchemes: { token: { type: 'http', scheme: 'bearer', description: 'clo_ID_SECRET' } },
      schemas: { Problem: ProblemSchema },
      responses: {
        Problem: {
          description: 'It did not work; the code says why.',
          content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
        },
      },
    },
  };
}

function operation(name: string, route: Route): Record<string, unknown> {
  const parameters = [...parametersOf('path', route.params), ...parametersOf('query', route.query)];
  return {
    operationId: name,
    summary: route.summary,
    ...(route.access === 'none' ? { security: [] } : { security: [{ token: [] }] }),
    ...(route.access === 'operator' ? { description: 'For operators.' } : {}),
    ...(parameters.length > 0 ? { parameters } : {}),
    ...(route.body
      ? { requestBody: { content: { 'application/json': { schema: forRequest(route.body) } } } }
      : {}),
    responses: { ...success(route), default: { $ref: '#/components/responses/Problem' } },
  };
}

/** Whoever sends may leave out what has a default; in answers it is always there. */
function forRequest(schema: TSchema): TSchema {
  const { properties, required, ...rest } = schema as TSchema & ObjectSchema;
  if (!properties) return schema;
  const asked = (required ?? []).filter((name) => !('default' in (properties[name] ?? {})));
  const inside = Object.entries(properties).map(([name, property]) => [name, forRequest(property)]);
  return {
    ...rest,
    properties: Object.fromEntries(inside),
    ...(asked.length > 0 ? { required: asked } : {}),
  };
}

function parametersOf(where: 'path' | 'query', schema: TSchema | undefined): Record<string, unknown>[] {
  const { properties = {}, required = [] } = (schema ?? {}) as ObjectSchema;
  return Object.entries(properties).map(([name, property]) => ({
    name,
    in: where,
    required: where === 'path' || required.includes(name),
    schema: property,
  }));
}

function success({ reply }: Route): Record<string, unknown> {
  switch (reply.kind) {
    case 'json':
      return {
        [reply.status]: { description: 'Done.', content: { 'application/json': { schema: reply.schema } } },
      };
    case 'empty':
      return { 204: { description: 'Done.' } };
    case 'stream':
      return {
        200: {
          description: 'One JSON object a line.',
          content: { 'application/x-ndjson': { schema: reply.schema } },
        },
      };
    case 'websocket':
      return {
        101: {
          description:
            'A WebSocket: each binary message is a channel byte (0 stdin, 1 stdout, 2 stderr, 3 control as JSON) and its payload.',
        },
      };
  }
}
