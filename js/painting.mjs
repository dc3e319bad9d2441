/**
 * Painted cells, and the text that the `painting` widget keeps them in (see comfy_moss/pipeline/dispatch.py).
 */

import { samePlace } from "./dispatch.mjs";

const FORM = /^(\d{1,4})x(\d{1,4}):([A-Za-z0-9+/]*={0,2})$/;

/**
 * @typedef {object} Painting
 * @property {[number, number]} grid height and width
 * @property {Uint8Array} cells 1 = painted, row-major
 */

/**
 * @param {string} text "ROWSxCOLUMNS:" and base64 of one bit a cell, the first cell in the highest bit; "" =
 *     nothing
 * @returns {Painting | null} null where nothing is painted, or the text is of another form
 */
export function readPainting(text) {
  const match = FORM.exec(text.trim());
  if (!match) return null;
  const grid = [Number(match[1]), Number(match[2])];
  const bits = Uint8Array.from(atob(match[3]), (letter) => letter.charCodeAt(0));
  const bit = (_, cell) => (bits[cell >> 3] >> (7 - (cell & 7))) & 1;
  const cells = Uint8Array.from({ length: grid[0] * grid[1] }, bit);
  return cells.includes(1) ? { grid, cells } : null;
}

/**
 * @param {Painting} painting
 * @returns {string} "" where nothing is painted
 */
export function writePainting({ grid, cells }) {
  if (!cells.includes(1)) return "";
  const bits = new Uint8Array(Math.ceil(cells.length / 8));
  cells.forEach((painted, cell) => {
    bits[cell >> 3] |= painted << (7 - (cell & 7));
  });
  return `${grid[0]}x${grid[1]}:${btoa(String.fromCharCode(...bits))}`;
}

/**
 * The painting on a grid: itself, or that of another size fitted to it.
 * @param {Painting | null} painting
 * @param {[number, number]} grid
 * @returns {Painting} a copy
 */
export function onGrid(painting, grid) {
  const cells = new Uint8Array(grid[0] * grid[1]);
  if (!painting) return { grid, cells };
  const [height, width] = painting.grid;
  cells.forEach((_, cell) => {
    const row = samePlace(Math.floor(cell / grid[1]), grid[0], height);
    cells[cell] = painting.cells[row * width + samePlace(cell % grid[1], grid[1], width)];
  });
  return { grid, cells };
}

/**
 * Paint or erase with a round brush along a line.
 * @param {Painting} painting changed in place
 * @param {{row: number, column: number}} from
 * @param {{row: number, column: number}} to
 * @param {number} size of the brush in cells, odd
 * @param {0 | 1} value 0 erases
 */
export function stroke({ grid: [height, width], cells }, from, to, size, value) {
  const reach = (size - 1) / 2;
  const steps = Math.max(1, Math.abs(to.row - from.row), Math.abs(to.column - from.column));
  for (let step = 0; step <= steps; step += 1) {
    const along = (axis) => Math.round(from[axis] + ((to[axis] - from[axis]) * step) / steps);
    const [row, column] = ["row", "column"].map(along);
    for (let y = Math.max(0, row - reach); y <= Math.min(height - 1, row + reach); y += 1) {
      for (let x = Math.max(0, column - reach); x <= Math.min(width - 1, column + reach); x += 1) {
        if ((y - row) ** 2 + (x - column) ** 2 <= reach ** 2 + reach) cells[y * width + x] = value;
      }
    }
  }
}
