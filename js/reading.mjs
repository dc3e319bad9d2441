/** What the inspector says in words: the token under the pointer, the scales, the cost. */

import { counts, redrawnBy, shareOfDense } from "./dispatch.mjs";
import { DRAFTED, gridName, swatch } from "./dom.mjs";

const thousands = (number) => number.toLocaleString("en-US");

/**
 * @typedef {object} State what is shown now, and not what was sent
 * @property {number[]} bounds percent, coarsest first
 * @property {Uint16Array[]} ranks of each refine scale's cells
 * @property {import("./painting.mjs").Painting | null} painting
 */

/**
 * Two lines about a token.
 * @param {import("./decode.mjs").Inspection} inspection
 * @param {import("./decode.mjs").Picture} picture
 * @param {State} state
 * @param {{row: number, column: number}} cell of the final grid, from 0; shown from 1
 * @returns {(Node | string)[][]}
 */
export function describeToken({ grids, final, colours }, { frequency, percentile }, { bounds, ranks }, cell) {
  const at = cell.row * final[1] + cell.column;
  const busier = Math.min(99, Math.round((100 * percentile[at]) / 255)); // no token is busier than itself
  const scales = redrawnBy(grids, ranks, bounds, final, cell).map((i) => swatch(colours[i], gridName(grids[i])));
  return [
    [`Row ${cell.row + 1}, col ${cell.column + 1} \u00b7 frequency ${frequency[at].toPrecision(3)} \u00b7 busier than ${busier} %`],
    scales.length ? ["Redrawn at", ...scales] : [swatch(DRAFTED, "Stays as drafted")],
  ];
}

/**
 * The scales' colours, grids and numbers of tokens.
 * @param {import("./decode.mjs").Inspection} inspection
 * @param {number[]} bounds percent
 * @returns {Node[]}
 */
export function legend({ grids, colours }, bounds) {
  const tokens = counts(grids, bounds);
  const scales = grids.map((grid, i) => swatch(colours[i], `${gridName(grid)}: ${thousands(tokens[i])}`));
  return [...scales, swatch(DRAFTED, "as drafted")];
}

/**
 * Tokens that are redrawn, memory of the draft, predicted work.
 * @param {import("./decode.mjs").Inspection} inspection
 * @param {number[]} bounds percent
 * @returns {string}
 */
export function costLine({ grids, work, draftTokens, kvBytes }, bounds) {
  const refined = counts(grids, bounds).reduce((sum, tokens) => sum + tokens, 0);
  const share = Math.round(100 * shareOfDense(work, draftTokens, refined));
  const mebibytes = kvBytes / 2 ** 20;
  const kv = mebibytes < 100 ? mebibytes.toPrecision(3) : thousands(Math.round(mebibytes));
  return `${thousands(refined)} tokens \u00b7 KV ${kv} MiB \u00b7 ${share} % of dense`;
}
