/** What the inspector says in words: the token under the pointer, the scales, the cost. */

import { counts, redrawnBy, shareOfDense } from "./dispatch.mjs";
import { gridName, swatch } from "./dom.mjs";
import { say } from "./words.mjs";

const thousands = new Intl.NumberFormat("en-US").format;

/**
 * Two lines about a token.
 * @param {import("./decode.mjs").Inspection} inspection
 * @param {import("./decode.mjs").Picture} picture
 * @param {import("./state.mjs").State} state
 * @param {{row: number, column: number}} cell of the final grid, from 0; shown from 1
 * @returns {(Node | string)[][]}
 */
export function describeToken({ final, drafted }, picture, state, { row, column }) {
  const { grids, colours } = state;
  const at = row * final[1] + column;
  const share = Math.round((100 * picture.percentile[at]) / 255);
  const busier = Math.min(99, share); // no token is busier than itself
  const frequency = picture.frequency[at].toPrecision(3);
  const taken = redrawnBy(state, final, { row, column });
  const scales = taken.map((i) => swatch(colours[i], gridName(grids[i])));
  return [
    [say("token.place", { row: row + 1, column: column + 1, frequency, busier })],
    scales.length ? [say("token.redrawn"), ...scales] : [swatch(drafted, say("token.drafted"))],
  ];
}

/**
 * The scales' colours, grids and numbers of tokens.
 * @param {import("./decode.mjs").Inspection} inspection
 * @param {import("./state.mjs").State} state
 * @returns {Node[]}
 */
export function legend({ drafted }, { grids, colours, open, bounds }) {
  const tokens = counts(open, bounds);
  const scales = grids.map((grid, i) => swatch(colours[i], `${gridName(grid)}: ${thousands(tokens[i])}`));
  return [...scales, swatch(drafted, say("legend.drafted"))];
}

/**
 * Tokens that are redrawn, memory of the draft, predicted work.
 * @param {import("./decode.mjs").Inspection} inspection
 * @param {import("./state.mjs").State} state
 * @returns {string}
 */
export function costLine({ work, draftTokens, kvBytes }, { open, bounds }) {
  const refined = counts(open, bounds).reduce((sum, tokens) => sum + tokens, 0);
  const share = Math.round(100 * shareOfDense(work, draftTokens, refined));
  const mebibytes = kvBytes / 2 ** 20;
  const kv = mebibytes < 100 ? mebibytes.toPrecision(3) : thousands(Math.round(mebibytes));
  return say("cost.line", { tokens: thousands(refined), kv, share });
}
