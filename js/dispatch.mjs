/**
 * Dispatch: how percentile bounds share the tokens out, and what that costs.
 *
 * The same arithmetic as comfy_moss/pipeline/dispatch.py, in the same order, so that both round alike. No DOM, no host.
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
 * @param {[number, number][]} grids height and width, coarsest first
 * @param {number[]} bounds percent, coarsest first
 */
export function bands(grids, bounds) {
  return grids.map(([height, width], i) => band(height * width, bounds[i], bounds[i + 1] ?? 0));
}

/**
 * Tokens that each refine scale redraws.
 * @returns {number[]} coarsest first
 */
export function counts(grids, bounds) {
  return bands(grids, bounds).map(({ start, stop }) => stop - start);
}

/**
 * The part of the plain model's work that a draft and this many refined tokens need.
 * @param {{linear: number, attention: number, draft: number, dense: number}} work per token, per pair of tokens, totals
 * @param {number} draftTokens in the KV cache
 * @param {number} refined tokens of all refine scales
 * @returns {number} 0 to 1, and above where refining costs more than it saves
 */
export function shareOfDense(work, draftTokens, refined) {
  return (work.draft + refined * (work.linear + work.attention * (draftTokens + refined))) / work.dense;
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
 * @param {[number, number][]} grids coarsest first
 * @param {Uint16Array[]} ranks of each grid's cells, 0 = busiest
 * @param {number[]} bounds percent
 * @param {[number, number]} final height and width of the final grid
 * @param {{row: number, column: number}} cell on the final grid
 * @returns {number[]} indices into grids, coarsest first; empty: stays as drafted
 */
export function redrawnBy(grids, ranks, bounds, final, cell) {
  return bands(grids, bounds).flatMap(({ start, stop }, i) => {
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

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/**
 * Numbers separated by commas or semicolons; percent signs are ignored.
 * @returns {number[] | null} null where something else is in the text
 */
export function parseNumbers(text) {
  const words = String(text).replaceAll("%", "").split(/[,;]/).map((word) => word.trim());
  return words.every((word) => NUMBER.test(word)) ? words.map(Number) : null;
}

/**
 * The bounds that a Token Dispatch node's widgets mean.
 * @param {string} preset "custom bounds", "custom shares", or one of known
 * @param {string} values the numbers of the two custom presets
 * @param {number} k number of refine scales
 * @param {Object<string, number[] | null>} known by preset its bounds for this model and k; null: there are none
 * @returns {{bounds: number[]} | {problem: string}} the problem is one clear sentence
 */
export function resolveBounds(preset, values, k, known) {
  if (preset in known) {
    return known[preset]
      ? { bounds: known[preset] }
      : { problem: `The paper has no bounds for ${k} refine scales; choose custom bounds.` };
  }
  const numbers = parseNumbers(values);
  if (!numbers) return { problem: `"${values}" is not a list of percentages; the last bounds are shown.` };
  if (numbers.length !== k) return { problem: `${numbers.length} of ${k} percentages given; the last bounds are shown.` };
  return preset === "custom shares" ? fromShares(numbers) : fromBounds(numbers);
}

function fromShares(shares) {
  const sum = shares.reduce((total, share) => total + share, 0);
  if (Math.min(...shares) < 0 || sum > 100 + 1e-6) {
    return { problem: "Shares must be 0 or more and sum to at most 100; the last bounds are shown." };
  }
  return { bounds: boundsFromShares(shares) };
}

function fromBounds(bounds) {
  const inRange = bounds.every((bound) => bound >= 0 && bound <= 100);
  const falling = bounds.every((bound, i) => i === 0 || bound <= bounds[i - 1]);
  if (inRange && falling) return { bounds };
  return { problem: "Bounds must fall from 100 to 0, coarsest scale first; the last bounds are shown." };
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

/**
 * Bounds as text for the `values` widget.
 * @param {number[]} bounds percent
 */
export function formatBounds(bounds) {
  return bounds.map((bound) => String(Number(bound.toFixed(4)))).join(", ");
}
