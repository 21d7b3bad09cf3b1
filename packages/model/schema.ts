// Pieces that several schemas share.
import Type, { type Static } from 'typebox';

export const TimeSchema = Type.Integer({ minimum: 0, description: 'Milliseconds since the Unix epoch.' });

/** Why something is as it is: a stable code (see errors.ts) and a sentence for people. */
export const ReasonSchema = Type.Object({
  code: Type.String({ maxLength: 64 }),
  message: Type.String({ maxLength: 4096 }),
});
export type Reason = Static<typeof ReasonSchema>;
