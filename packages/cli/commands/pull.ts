// cloister pull: an image to the nodes, before it is needed.
import { reasonToError } from '@cloister/client/apiError.ts';
import type { PullProgress } from '@cloister/model/image.ts';
import { formatBytes } from '@cloister/model/units.ts';
import { defineCommand } from '../command.ts';
import { attempt, Failure, renderFailure } from '../failure.ts';
import { shortDigest, shortId } from '../format.ts';
import { StatusLine } from '../statusLine.ts';

export const pull = defineCommand({
  usage: 'pull [OPTIONS] IMAGE',
  options: { node: { type: 'string', value: 'NODE', help: 'To this node only. Default: to all workers.' } },
  min: 1,
  max: 1,
  example: 'cloister pull alpine:3.20',
  async run(context, values, [reference = '']) {
    const client = await context.client();
    const status = new StatusLine(context);
    const latest = new Map<string, PullProgress>();
    let failed = 0;
    try {
      await attempt(`pull ${reference}`, async () => {
        for await (const progress of client.pullImage({
          reference,
          ...(values.node === undefined ? {} : { node: values.node }),
        })) {
          latest.set(progress.nodeId, progress);
          if (context.json) await context.item(progress);
          else status.set(summarize(reference, latest));
          if (progress.stage !== 'done' && progress.stage !== 'failed') continue;
          await status.clear();
          if (progress.stage === 'done' && !context.json)
            await context.line(
              `${shortId(progress.nodeId)}  ${shortDigest(progress.digest ?? '')}  ${progress.reference}`,
            );
          if (progress.stage !== 'failed') continue;
          failed++;
          const cause = reasonToError(
            progress.reason ?? { code: 'image.pull-failed', message: 'The node gave no reason.' },
          );
          await context.err.write(
            renderFailure(
              new Failure(`could not pull ${reference} to ${shortId(progress.nodeId)}`, cause),
              context.json,
            ),
          );
        }
      });
    } finally {
      await status.clear();
    }
    return failed === 0 ? 0 : 1;
  },
});

function summarize(reference: string, latest: ReadonlyMap<string, PullProgress>): string {
  const all = [...latest.values()];
  const busy = all.filter(({ stage }) => stage !== 'done' && stage !== 'failed');
  const total = (key: 'fetchedBytes' | 'totalBytes') =>
    formatBytes(busy.reduce((sum, progress) => sum + progress[key], 0));
  const stages = [...new Set(busy.map(({ stage }) => stage))].join(', ');
  return `${reference}: ${stages} ${total('fetchedBytes')} of ${total('totalBytes')}${all.length > 1 ? `, ${all.length - busy.length} of ${all.length} nodes done` : ''}`;
}
