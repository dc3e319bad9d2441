/**
 * The histogram of a picture's frequencies: where a frequency, or a percentile, lies on its axis, and its
 * bars.
 *
 * The axis runs from 0 (left, calm) to 1 (right, busy). It is logarithmic, and has no place there for zeros
 * and for what is
 * too small to matter: these share a strip at the left end, in order of rank.
 */

import { bands, samePlace } from "./dispatch.mjs";

const DECADES = 3; // of the logarithmic part, below the largest frequency
const STRIP = 0.08; // width of the place for smaller ones
const BARS = 72;

/**
 * @typedef {object} Axis
 * @property {Float32Array} sorted frequencies, ascending
 * @property {number} faint how many of them are in the strip
 * @property {number} strip its width, 0 where nothing is in it
 * @property {number} low logarithm (base 10) at the left end of the logarithmic part
 * @property {number} span of logarithms, above 0
 */

/**
 * @param {Float32Array} frequency of every cell
 * @returns {Axis}
 */
export function frequencyAxis(frequency) {
  const sorted = Float32Array.from(frequency).sort();
  const largest = sorted[sorted.length - 1];
  const faint = sorted.findIndex((value) => value > 0 && value >= largest / 10 ** DECADES);
  if (faint < 0) return { sorted, faint: sorted.length, strip: 1, low: 0, span: 1 };
  const low = Math.log10(sorted[faint]);
  return { sorted, faint, strip: faint ? STRIP : 0, low, span: Math.log10(largest) - low || 1 };
}

function placeOfFrequency(axis, frequency) {
  return axis.strip + ((1 - axis.strip) * (Math.log10(frequency) - axis.low)) / axis.span;
}

function placeAt(axis, index) {
  if (index >= axis.faint) return placeOfFrequency(axis, axis.sorted[index]);
  return (axis.strip * (index + 0.5)) / axis.faint;
}

/**
 * @param {Axis} axis
 * @param {number} percent of the cells that are to the right of the place
 * @returns {number} place on the axis
 */
export function placeOfPercent(axis, percent) {
  const cells = axis.sorted.length;
  const index = Math.round(cells * (1 - percent / 100));
  if (index <= 0) return 0;
  if (index >= cells) return 1;
  return (placeAt(axis, index - 1) + placeAt(axis, index)) / 2;
}

/**
 * @param {Axis} axis
 * @param {number} place on the axis
 * @returns {number} percent of the cells that are to its right
 */
export function percentOfPlace(axis, place) {
  let [low, high] = [0, axis.sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (placeAt(axis, middle) < place) low = middle + 1;
    else high = middle;
  }
  return 100 * (1 - low / axis.sorted.length);
}

/**
 * Bars, each a stack of the scales that its cells go to.
 * @param {Axis} axis
 * @param {Float32Array} frequency of every cell of the final grid
 * @param {[number, number]} final grid
 * @param {import("./state.mjs").State} state whose finest scale decides
 * @returns {{left: number, right: number, stack: number[]}[]} stack: cells of each scale, coarsest first,
 *     then as drafted
 */
export function bars(axis, frequency, final, { grids, open, ranks, bounds }) {
  const width = (1 - axis.strip) / BARS;
  const left = (n) => axis.strip + n * width;
  const places = Array.from({ length: BARS }, (_, n) => [left(n), left(n + 1)]);
  const empty = () => Array(bounds.length + 1).fill(0);
  const found = [[0, axis.strip], ...places].map(([left, right]) => ({ left, right, stack: empty() }));
  const ranges = bands(bounds.map(() => open.at(-1)), bounds);
  const scaleOf = finestScale(final, grids.at(-1), ranks.at(-1), ranges);
  frequency.forEach((value, cell) => {
    const isFaint = axis.faint === frequency.length || value < axis.sorted[axis.faint];
    const column = isFaint ? -1 : Math.floor((placeOfFrequency(axis, value) - axis.strip) / width);
    found[1 + Math.min(column, BARS - 1)].stack[scaleOf(cell)] += 1;
  });
  return found.filter(({ left, right }) => right > left);
}

/**
 * Which scale a cell of the final grid goes to by its rank on the finest grid of the pass; the last number:
 * none.
 */
function finestScale(final, grid, ranks, ranges) {
  return (cell) => {
    const row = samePlace(Math.floor(cell / final[1]), final[0], grid[0]);
    const rank = ranks[row * grid[1] + samePlace(cell % final[1], final[1], grid[1])];
    const scale = ranges.findIndex(({ start, stop }) => rank >= start && rank < stop);
    return scale < 0 ? ranges.length : scale;
  };
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {ReturnType<typeof bars>} found
 * @param {string[]} colours of the scales, then of what stays as drafted
 * @param {number} top pixels kept free above the bars
 */
export function paintBars(canvas, found, colours, top) {
  const context = canvas.getContext("2d");
  const tallest = Math.max(...found.map(({ stack }) => stack.reduce((sum, cells) => sum + cells, 0)));
  const drafted = colours.length - 1; // at the bottom, the finest scale on top
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const { left, right, stack } of found) {
    const [from, to] = [left, right].map((place) => Math.round(place * canvas.width));
    let bottom = canvas.height;
    for (const scale of [drafted, ...Array(drafted).keys()]) {
      const part = (stack[scale] / tallest) * (canvas.height - top);
      context.fillStyle = colours[scale];
      context.fillRect(from, bottom - part, Math.max(1, to - from - 1), part);
      bottom -= part;
    }
  }
}

/**
 * The bounds: upright lines, each led to its label above.
 * @param {HTMLCanvasElement} canvas
 * @param {number[]} places on the axis
 * @param {number[]} labels on the axis
 * @param {string} colour
 * @param {number} width of a line in pixels
 * @param {number} top pixels above the bars, for the leads
 */
export function paintBounds(canvas, places, labels, colour, width, top) {
  const context = canvas.getContext("2d");
  const x = (place) => Math.min(canvas.width - width / 2, Math.max(width / 2, place * canvas.width));
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineJoin = "round";
  places.forEach((place, i) => {
    context.beginPath();
    context.moveTo(x(labels[i]), 0);
    context.lineTo(x(place), top);
    context.lineTo(x(place), canvas.height);
    context.stroke();
  });
}
