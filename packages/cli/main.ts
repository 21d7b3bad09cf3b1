// The entry of the `cloister` command; bin/cloister runs it.
import { runProgram } from './program.ts';

// Everything is written when this resolves. Kept-alive connections and an open standard input must not hold us up.
process.exit(await runProgram(process.argv.slice(2)));
