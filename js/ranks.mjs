/**
 * Ranks of the tokens: which is redrawn first, from the frequencies and what is painted.
 *
 * The same arithmetic as `token_scores` in comfy_moss/pipeline/dispatch.py, in single precision, so that both
 * rank alike.
 */

const TINY = 1e-20;

/**
 * Averages over the part of a grid that each cell of another grid covers.
 * @param {ArrayLike<number>} values row-major
 * @param {[number, number]} from height and width
 * @param {[number, number]} to height and width
 * @returns {Float32Array}
 */
export function pool(values, from, to) {
  const [rows, columns] = [0, 1].map((axis) =>
    Array.from({ length: to[axis] }, (_, cell) => [
      Math.floor((cell * from[axis]) / to[axis]),
      Math.ceil(((cell + 1) * from[axis]) / to[axis]),
    ]),
  );
  const result = new Float32Array(to[0] * to[1]);
  rows.forEach(([top, bottom], row) => {
    columns.forEach(([left, right], column) => {
      let sum = 0;
      for (let y = top; y < bottom; y += 1) {
        for (let x = left; x < right; x += 1) sum = Math.fround(sum + values[y * from[1] + x]);
      }
      result[row * to[1] + column] = Math.fround(sum / (bottom - top)) / (right - left);
    });
  });
  return result;
}

function scores(frequency, final, grid, painting) {
  const found = pool(frequency, final, grid);
  if (!painting) return found;
  const peak = Math.max(found.reduce((most, value) => Math.max(most, value), 0), TINY);
  const painted = pool(painting.cells, painting.grid, grid);
  return found.map((value, cell) => Math.fround(value / peak) + painted[cell]);
}

/**
 * Rank of every cell of every refine scale, 0 = redrawn first; ties in raster order. What never changes stays
 * last.
 * @param {import("./decode.mjs").Inspection} inspection
 * @param {import("./decode.mjs").Picture} picture
 * @param {import("./painting.mjs").Painting | null} painting
 * @returns {Uint16Array[]}
 */
export function rankTokens({ final, grids, open }, { frequency, ranks: sent }, painting) {
  return grids.map((grid, i) => {
    const found = scores(frequency, final, grid, painting);
    const score = found.map((value, cell) => (sent[i][cell] < open[i] ? value : -1));
    const order = Array.from(score.keys()).sort((a, b) => score[b] - score[a]);
    const ranks = new Uint16Array(order.length);
    order.forEach((cell, rank) => {
      ranks[cell] = rank;
    });
    return ranks;
  });
}
