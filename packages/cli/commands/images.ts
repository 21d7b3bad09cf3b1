// cloister images: what the nodes have.
import { formatBytes } from '@cloister/model/units.ts';
import { defineCommand } from '../command.ts';
import { attempt } from '../failure.ts';
import { formatAge, shortDigest } from '../format.ts';

export const images = defineCommand({
  usage: 'images [OPTIONS]',
  options: {},
  min: 0,
  max: 0,
  details:
    'SIZE is of its compressed layers, BLOCK of the block image that machines boot with, NODES how many have it.',
  example: 'cloister images',
  async run(context) {
    const client = await context.client();
    const { images } = await attempt('list images', () => client.listImages());
    if (context.json) {
      await context.document({ images });
      return 0;
    }
    const groups = Map.groupBy(images, ({ reference, digest }) => `${reference} ${digest}`);
    const rows = [...groups.values()].flatMap((group) => {
      const [first] = group;
      if (!first) return [];
      const pulledAt = Math.max(...group.map((image) => image.pulledAt));
      return [
        [
          first.reference,
          shortDigest(first.digest),
          formatBytes(first.sizeBytes),
          formatBytes(first.blockBytes),
          String(group.length),
          formatAge(pulledAt, context.now()),
        ],
      ];
    });
    await context.table(
      [
        { title: 'IMAGE', isElastic: true },
        { title: 'DIGEST' },
        { title: 'SIZE', isRight: true },
        { title: 'BLOCK', isRight: true },
        { title: 'NODES', isRight: true },
        { title: 'PULLED' },
      ],
      rows,
    );
    return 0;
  },
});
