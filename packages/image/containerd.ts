// A client of containerd's gRPC API: the content store, leases, snapshots and the diff service, in one namespace of
// our own. What fails comes out as ContainerdError with gRPC's status code, so that callers can tell "not there" and
// "there already" from defects.
import { join } from 'node:path';
import {
  Client,
  credentials,
  Metadata,
  type ServiceDefinition,
  type ServiceError,
  status,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { ContainerdError, fromServiceError } from './containerdError.ts';
import { Ingestion } from './ingestion.ts';

export interface Mount {
  readonly type: string;
  readonly source: string;
  readonly options: readonly string[];
}

export interface ContentInfo {
  readonly digest: string;
  readonly size: number;
}

interface CallOptions {
  readonly signal?: AbortSignal | undefined;
  /** Under which lease what is made is kept. */
  readonly lease?: string | undefined;
  readonly timeoutMs?: number | undefined;
}

const NAMESPACE = 'cloister';
const SNAPSHOTTER = 'overlayfs';
const CALL_TIMEOUT_MS = 30_000;
/** A layer of many gigabytes on a slow disk. */
const APPLY_TIMEOUT_MS = 30 * 60_000;
/** Deleting a lease with `sync` deletes what it kept. */
const COLLECT_TIMEOUT_MS = 5 * 60_000;
const PROTO_FOLDER = join(import.meta.dirname, '../../proto');
const PROTO_FILES = ['content', 'diff', 'leases', 'namespaces', 'snapshots', 'version'];

let services: Record<string, ServiceDefinition> | undefined;

export class ContainerdClient {
  readonly #client: Client;

  /** Does not connect yet; the first call does. */
  constructor(socketPath: string) {
    services ??= loadServices();
    this.#client = new Client(`unix:${socketPath}`, credentials.createInsecure(), {
      'grpc.max_receive_message_length': 16 * 1_048_576,
      'grpc.initial_reconnect_backoff_ms': 50,
      'grpc.max_reconnect_backoff_ms': 1000,
      // Channels are shared by address otherwise, and one that backs off would hold up another's first call.
      'grpc.use_local_subchannel_pool': 1,
    });
  }

  close(): void {
    this.#client.close();
  }

  async version(options: CallOptions = {}): Promise<string> {
    const answer = await this.#call<{ version: string }>('version.v1.Version', 'Version', {}, options);
    return answer.version;
  }

  async createNamespace(): Promise<void> {
    await allow(
      status.ALREADY_EXISTS,
      this.#call('namespaces.v1.Namespaces', 'Create', { namespace: { name: NAMESPACE } }),
    );
  }

  /** Undefined when the store does not have it. */
  async contentInfo(digest: string, options: CallOptions = {}): Promise<ContentInfo | undefined> {
    const answer = await allow(
      status.NOT_FOUND,
      this.#call<{ info: ContentInfo }>('content.v1.Content', 'Info', { digest }, options),
    );
    return answer?.info;
  }

  async deleteContent(digest: string): Promise<void> {
    await allow(status.NOT_FOUND, this.#call('content.v1.Content', 'Delete', { digest }));
  }

  async listContent(): Promise<ContentInfo[]> {
    const answers = await this.#list<{ info: ContentInfo[] }>('content.v1.Content', 'List', {});
    return answers.flatMap(({ info }) => info);
  }

  /** The ingestions that are not committed. */
  async listIngestions(): Promise<{ ref: string; offset: number }[]> {
    const { statuses } = await this.#call<{ statuses: { ref: string; offset: number }[] }>(
      'content.v1.Content',
      'ListStatuses',
      {},
    );
    return statuses;
  }

  async abortIngestion(ref: string): Promise<void> {
    await allow(status.NOT_FOUND, this.#call('content.v1.Content', 'Abort', { ref }));
  }

  /** Begins to write content, or goes on with what an earlier ingestion of the same ref left. */
  ingest(ref: string, digest: string, sizeBytes: number, options: CallOptions): Ingestion {
    const method = methodOf('content.v1.Content', 'Write');
    const stream = this.#client.makeBidiStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      metadata(options),
      { deadline: Date.now() + APPLY_TIMEOUT_MS },
    );
    return new Ingestion(stream, { ref, expected: digest, total: sizeBytes });
  }

  async createLease(id: string): Promise<void> {
    await allow(status.ALREADY_EXISTS, this.#call('leases.v1.Leases', 'Create', { id }));
  }

  /** `collect`: what nothing else keeps is gone when this returns. */
  async deleteLease(id: string, collect: boolean): Promise<void> {
    const options = { timeoutMs: COLLECT_TIMEOUT_MS };
    await allow(status.NOT_FOUND, this.#call('leases.v1.Leases', 'Delete', { id, sync: collect }, options));
  }

  async listLeases(): Promise<string[]> {
    const { leases } = await this.#call<{ leases: { id: string }[] }>('leases.v1.Leases', 'List', {});
    return leases.map(({ id }) => id);
  }

  /** Keeps it from collection, whether it is there yet or not: lease first and look then, and nothing can get between. */
  async addToLease(lease: string, kind: 'content' | 'snapshot', id: string): Promise<void> {
    const type = kind === 'content' ? 'content' : `snapshots/${SNAPSHOTTER}`;
    await allow(
      status.ALREADY_EXISTS,
      this.#call('leases.v1.Leases', 'AddResource', { id: lease, resource: { id, type } }),
    );
  }

  async hasSnapshot(name: string, options: CallOptions = {}): Promise<boolean> {
    const answer = await allow(status.NOT_FOUND, this.#snapshots('Stat', { key: name }, options));
    return answer !== undefined;
  }

  /** A writable snapshot on `parent` ('' for none). */
  async prepareSnapshot(key: string, parent: string, options: CallOptions): Promise<Mount[]> {
    const answer = await this.#snapshots<{ mounts: Mount[] }>('Prepare', { key, parent }, options);
    return answer.mounts;
  }

  /** A read-only view of `parent`. */
  async viewSnapshot(key: string, parent: string, options: CallOptions): Promise<Mount[]> {
    const answer = await this.#snapshots<{ mounts: Mount[] }>('View', { key, parent }, options);
    return answer.mounts;
  }

  /** False when another has committed that name: its content is the same, for the name is a digest of it. */
  async commitSnapshot(name: string, key: string, options: CallOptions): Promise<boolean> {
    return (
      (await allow(status.ALREADY_EXISTS, this.#snapshots('Commit', { name, key }, options))) !== undefined
    );
  }

  async removeSnapshot(key: string): Promise<void> {
    await allow(status.NOT_FOUND, this.#snapshots('Remove', { key }, { timeoutMs: COLLECT_TIMEOUT_MS }));
  }

  async listSnapshots(): Promise<string[]> {
    const answers = await this.#list<{ info: { name: string }[] }>('snapshots.v1.Snapshots', 'List', {
      snapshotter: SNAPSHOTTER,
    });
    return answers.flatMap(({ info }) => info.map(({ name }) => name));
  }

  /** Disk space of this snapshot alone, without its parents. */
  async snapshotBytes(key: string, options: CallOptions = {}): Promise<number> {
    const answer = await this.#snapshots<{ size: number }>('Usage', { key }, options);
    return answer.size;
  }

  /** Unpacks a layer to the mounts; gives the digest of what it was uncompressed. */
  async applyLayer(
    layer: { mediaType: string; digest: string; size: number },
    mounts: readonly Mount[],
    options: CallOptions,
  ): Promise<string> {
    const answer = await this.#call<{ applied: { digest: string } }>(
      'diff.v1.Diff',
      'Apply',
      { diff: layer, mounts },
      { timeoutMs: APPLY_TIMEOUT_MS, ...options },
    );
    return answer.applied.digest;
  }

  #snapshots<Answer>(method: string, request: object, options: CallOptions): Promise<Answer> {
    return this.#call<Answer>(
      'snapshots.v1.Snapshots',
      method,
      { snapshotter: SNAPSHOTTER, ...request },
      options,
    );
  }

  async #call<Answer>(
    service: string,
    name: string,
    request: object,
    options: CallOptions = {},
  ): Promise<Answer> {
    options.signal?.throwIfAborted();
    const method = methodOf(service, name);
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    const call = this.#client.makeUnaryRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      metadata(options),
      { deadline: Date.now() + (options.timeoutMs ?? CALL_TIMEOUT_MS) },
      (error: ServiceError | null, answer?: unknown) => {
        if (error) reject(options.signal?.aborted ? options.signal.reason : fromServiceError(name, error));
        else resolve(answer as Answer);
      },
    );
    const cancel = (): void => call.cancel();
    options.signal?.addEventListener('abort', cancel, { once: true });
    try {
      return await promise;
    } finally {
      options.signal?.removeEventListener('abort', cancel);
    }
  }

  async #list<Answer>(service: string, name: string, request: object): Promise<Answer[]> {
    const method = methodOf(service, name);
    const stream = this.#client.makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      metadata({}),
      { deadline: Date.now() + CALL_TIMEOUT_MS },
    );
    try {
      const answers: Answer[] = [];
      for await (const answer of stream) answers.push(answer as Answer);
      return answers;
    } catch (error) {
      throw fromServiceError(name, error as ServiceError);
    }
  }
}

/** Undefined in place of an error with this status. */
async function allow<Answer>(code: status, call: Promise<Answer>): Promise<Answer | undefined> {
  try {
    return await call;
  } catch (error) {
    if (error instanceof ContainerdError && error.code === code) return undefined;
    throw error;
  }
}

function metadata(options: CallOptions): Metadata {
  const values = new Metadata();
  values.set('containerd-namespace', NAMESPACE);
  if (options.lease) values.set('containerd-lease', options.lease);
  return values;
}

function methodOf(service: string, name: string): ServiceDefinition[string] {
  const method = services?.[`containerd.services.${service}`]?.[name];
  if (!method) throw new Error(`proto/containerd has no ${service}.${name}`);
  return method;
}

function loadServices(): Record<string, ServiceDefinition> {
  return loadSync(
    PROTO_FILES.map((file) => `containerd/${file}.proto`),
    { includeDirs: [PROTO_FOLDER], longs: Number, enums: String, defaults: true },
  ) as unknown as Record<string, ServiceDefinition>;
}
