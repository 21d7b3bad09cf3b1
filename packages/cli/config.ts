// Which cluster, and who we are there. From the environment (CLOISTER_URL, CLOISTER_CA_FILE, CLOISTER_TOKEN), and
// for what it leaves open from a file: CLOISTER_CONFIG, or cloister/config.json in the user's configuration folder:
//   { "url": "https://HOST:PORT", "caFile": "ca.pem", "token": "..." or "tokenFile": "token" }
// Paths in the file are from its own folder. A file with a token in it must be its owner's alone.
import { open } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { ApiError } from '@cloister/client/apiError.ts';

export interface Config {
  readonly url: string;
  readonly caPem: string;
  readonly token: string;
}

type Environment = Readonly<Record<string, string | undefined>>;
const MAX_FILE_BYTES = 1024 * 1024;
const HINT =
  'Start a cluster on this machine with "make up", or set CLOISTER_CONFIG, or CLOISTER_URL, CLOISTER_CA_FILE and CLOISTER_TOKEN.';

/** Throws an ApiError that says which setting is missing or which file is wrong; never with a token in it. */
export async function loadConfig(env: Environment): Promise<Config> {
  const { CLOISTER_URL: url, CLOISTER_CA_FILE: caFile, CLOISTER_TOKEN: token } = env;
  if (url && caFile && token) return { url, caPem: await readText(caFile), token };
  const path =
    env['CLOISTER_CONFIG'] ||
    join(env['XDG_CONFIG_HOME'] || join(homedir(), '.config'), 'cloister', 'config.json');
  const file = parseFile(await readText(path, true), path);
  const beside = (name: string) => resolve(dirname(path), name);
  return {
    url: url || required(file.url, 'url', path),
    caPem: await readText(caFile || beside(required(file.caFile, 'caFile', path))),
    token:
      token ||
      file.token ||
      (await readText(beside(required(file.tokenFile, 'token or tokenFile', path)), true)).trim(),
  };
}

interface ConfigFile {
  readonly url?: string;
  readonly caFile?: string;
  readonly token?: string;
  readonly tokenFile?: string;
}

function parseFile(text: string, path: string): ConfigFile {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // Not the parser's message: it quotes the text, and the token may be in it.
    throw problem(`The configuration ${path} is not JSON.`, 'Correct it, or make it again with "make up".');
  }
  const known = ['url', 'caFile', 'token', 'tokenFile'];
  const isGood =
    typeof value === 'object' &&
    value !== null &&
    Object.entries(value).every(([name, item]) => !known.includes(name) || typeof item === 'string');
  if (!isGood)
    throw problem(
      `The configuration ${path} must be an object whose ${known.join(', ')} are strings.`,
      'Correct it, or make it again with "make up".',
    );
  return value as ConfigFile;
}

function required(value: string | undefined, name: string, path: string): string {
  if (!value) throw problem(`The configuration ${path} has no ${name}.`, HINT);
  return value;
}

async function readText(path: string, isSecret = false): Promise<string> {
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(path, 'r');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw problem(code === 'ENOENT' ? `There is no ${path}.` : `${path} cannot be read (${code}).`, HINT);
  }
  try {
    const { mode, size } = await file.stat();
    if (isSecret && (mode & 0o077) !== 0) {
      const octal = (mode & 0o777).toString(8).padStart(4, '0');
      throw problem(
        `${path} holds a credential and others may use it (its mode is ${octal}).`,
        `chmod 600 ${path}; if others could have read it, ask for a new token.`,
      );
    }
    if (size > MAX_FILE_BYTES) throw problem(`${path} is too long to be what it should be.`, HINT);
    return await file.readFile('utf8');
  } finally {
    await file.close();
  }
}

function problem(message: string, hint: string): ApiError {
  return new ApiError('auth.missing', message, { hint });
}
