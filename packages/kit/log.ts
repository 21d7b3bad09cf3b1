// Structured logging: one JSON object a line on standard error, or a file. Never log a secret, and never a byte
// that came from a guest without bounding it first.
import { destination, type Logger as PinoLogger, pino } from 'pino';

export type Logger = PinoLogger;

/** `name`: the part that speaks. `file`: where to; default standard error. Level from CLOISTER_LOG (default info). */
export function createLogger(name: string, options: { file?: string; level?: string } = {}): Logger {
  return pino(
    {
      name,
      level: options.level ?? process.env['CLOISTER_LOG'] ?? 'info',
      base: { pid: process.pid },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      redact: {
        paths: [
          'token',
          'secret',
          'password',
          'authorization',
          '*.token',
          '*.secret',
          '*.password',
          '*.authorization',
        ],
      },
    },
    destination({ dest: options.file ?? 2, sync: true }),
  );
}

export const silentLogger: Logger = pino({ level: 'silent' });
