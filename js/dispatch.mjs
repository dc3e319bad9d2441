/**
 * Dispatch: how percentile bounds share the tokens out, and what that costs.
 *
 * The same arithmetic as comfy_moss/pipeline/dispatch.py, in the same order, so that both round alike. No
 * DOM, no host.
 */

const roundHalfUp = (value) => Math.floor(value + 0.5);

/**
 * Ranks (0 = busiest) of the tokens between two bounds.
 * @param {number} tokens of the scale's grid
 * @param {number} upper percent
 * @param {number} lower percent
 * @returns {{start: number, stop: number}} stop is exclusive
 */
export function band(tokens, upper, lower) {
  const start = roundHalfUp((tokens * lower) / 100);
  const count = roundHalfUp((tokens * (upper - lower)) / 100);
  return { start, stop: Math.max(start, Math.min(tokens, start + count)) };
}

/**
 * The band of every refine scale, on its own grid.
 * @param {number[]} open tokens of each scale that may change, coarsest first
 * @param {number[]} bounds percent, coarsest first
 */
export function bands(open, bounds) {
  return open.map((tokens, i) => band(tokens, bounds[i], bounds[i + 1] ?? 0));
}

/**
 * Tokens that each refine scale redraws.
 * @returns {number[]} coarsest first
 */
export function counts(open, bounds) {
  return bands(open, bounds).map(({ start, stop }) => stop - start);
}

/**
 * The part of the plain model's work that a draft and this many refined tokens need.
 * @param {{linear: number, attention: number, rows: number, draft: number, dense: number}} work per token,
 *     per pair
 *     of tokens, rows of the refine pass, totals
 * @param {number} draftTokens in the KV cache
 * @param {number} refined tokens of all refine scales
 * @returns {number} 0 to 1, and above where refining costs more than it saves
 */
export function shareOfDense(work, draftTokens, refined) {
  const row = refined * (work.linear + work.attention * (draftTokens + refined));
  return (work.draft + work.rows * row) / work.dense;
}

/**
 * The cell of a coarser grid that holds the centre of a cell of the final grid.
 * @param {number} place row (or column) on the final grid
 * @param {number} from rows (or columns) of the final grid
 * @param {number} to rows (or columns) of the other grid
 */
export function samePlace(place, from, to) {
  return Math.floor(((2 * place + 1) * to) / (2 * from));
}

/**
 * Which refine scales redraw a place of the final grid.
 * @param {import("./state.mjs").State} state
 * @param {[number, number]} final height and width of the final grid
 * @param {{row: number, column: number}} cell on the final grid
 * @returns {number[]} indices into the scales of the state, coarsest first; empty: stays as drafted
 */
export function redrawnBy({ grids, open, ranks, bounds }, final, cell) {
  return bands(open, bounds).flatMap(({ start, stop }, i) => {
    const [height, width] = grids[i];
    const row = samePlace(cell.row, final[0], height);
    const rank = ranks[i][row * width + samePlace(cell.column, final[1], width)];
    return rank >= start && rank < stop ? [i] : [];
  });
}

/**
 * Bounds from the percentage that each refine scale gets.
 * @param {number[]} shares coarsest first
 */
export function boundsFromShares(shares) {
  return shares.map((_, i) => Math.min(100, shares.slice(i).reduce((sum, share) => sum + share, 0)));
}

/**
 * One bound moved, no further than its neighbours.
 * @param {number[]} bounds percent, coarsest first
 * @param {number} index of the bound
 * @param {number} percent where to
 * @param {number} step to round to, percent
 * @returns {number[]} new bounds
 */
export function moveBound(bounds, index, percent, step) {
  const [upper, lower] = [bounds[index - 1] ?? 100, bounds[index + 1] ?? 0];
  const rounded = Number((Math.round(percent / step) * step).toFixed(1));
  const clamped = Math.min(upper, Math.max(lower, rounded));
  return bounds.map((bound, i) => (i === index ? clamped : bound));
}
