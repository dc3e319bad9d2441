/** The three views of a picture, painted on a canvas whose buffer already has the right size. */

import { bands } from "./dispatch.mjs";

const OUTLINE = 0.45; // how far a cell's outline is lightened, as in the node's own picture

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function mix(from, to, part) {
  return from.map((value, i) => Math.round(value + (to[i] - value) * part));
}

/**
 * A palette of a few colours as a table of 256.
 * @param {string[]} palette "#rrggbb", low to high
 * @returns {number[][]} red, green, blue
 */
export function colourTable(palette) {
  const stops = palette.map(channels);
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    return mix(stops[low], stops[low + 1], place - low);
  });
}

function newCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/**
 * Percentiles in colour, one flat square a cell.
 * @param {HTMLCanvasElement} canvas
 * @param {Uint8Array} percentile row-major
 * @param {[number, number]} grid height and width
 * @param {number[][]} table of colourTable
 */
export function paintHeatmap(canvas, percentile, [height, width], table) {
  const small = newCanvas(width, height);
  const context = small.getContext("2d");
  const image = context.createImageData(width, height);
  percentile.forEach((level, cell) => image.data.set([...table[level], 255], 4 * cell));
  context.putImageData(image, 0, 0);
  const target = canvas.getContext("2d");
  target.imageSmoothingEnabled = false;
  target.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/**
 * The drafted picture.
 * @param {HTMLCanvasElement} canvas
 * @param {CanvasImageSource} picture
 */
export function paintPicture(canvas, picture) {
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
}

/**
 * The layers that an overlay is put together from; they depend on the picture and not on the bounds.
 * @param {CanvasImageSource | null} picture null: an even grey instead
 * @param {number} width of the canvas to paint on
 * @param {number} height
 * @param {string[]} colours of the scales
 * @returns {{dimmed: HTMLCanvasElement, tinted: HTMLCanvasElement[]}}
 */
export function overlayLayers(picture, width, height, colours) {
  const grey = newCanvas(width, height);
  const context = grey.getContext("2d");
  context.fillStyle = "#808080";
  context.fillRect(0, 0, width, height);
  if (picture) {
    context.drawImage(picture, 0, 0, width, height);
    context.globalCompositeOperation = "saturation"; // keeps the lightness of what is there
    context.fillRect(0, 0, width, height);
  }
  return {
    dimmed: laid(grey, "#292929", 0.38), // 0.10 + 0.38 grey
    tinted: colours.map((colour) => laid(grey, "#ffffff", 0.5, colour)), // colour * (0.5 + 0.5 grey)
  };
}

function laid(grey, ground, part, colour = "#ffffff") {
  const layer = newCanvas(grey.width, grey.height);
  const context = layer.getContext("2d");
  context.fillStyle = ground;
  context.fillRect(0, 0, layer.width, layer.height);
  context.globalAlpha = part;
  context.drawImage(grey, 0, 0);
  context.globalAlpha = 1;
  context.globalCompositeOperation = "multiply";
  context.fillStyle = colour;
  context.fillRect(0, 0, layer.width, layer.height);
  return layer;
}

/** First pixel of every cell along an axis: a pixel belongs to the cell that its centre lies in. */
function edges(pixels, cells) {
  return Array.from({ length: cells + 1 }, (_, cell) => Math.ceil((pixels * cell) / cells - 0.5));
}

function cellsPath(ranks, [height, width], { start, stop }, canvas) {
  const [rows, columns] = [edges(canvas.height, height), edges(canvas.width, width)];
  const path = new Path2D();
  ranks.forEach((rank, cell) => {
    if (rank < start || rank >= stop) return;
    const [row, column] = [Math.floor(cell / width), cell % width];
    path.rect(columns[column], rows[row], columns[column + 1] - columns[column], rows[row + 1] - rows[row]);
  });
  return path;
}

/**
 * Which scale redraws which place: one colour a scale, finest on top, the rest dimmed and grey.
 * @param {HTMLCanvasElement} canvas
 * @param {ReturnType<typeof overlayLayers>} layers of the canvas' size
 * @param {import("./state.mjs").State} state
 * @param {number} line width of an outline in pixels of the canvas
 */
export function paintOverlay(canvas, layers, { grids, open, colours, ranks, bounds }, line) {
  const context = canvas.getContext("2d");
  context.drawImage(layers.dimmed, 0, 0);
  context.lineWidth = line;
  bands(open, bounds).forEach((range, i) => {
    const path = cellsPath(ranks[i], grids[i], range, canvas);
    context.save();
    context.clip(path); // many times as fast as filling with a pattern
    context.drawImage(layers.tinted[i], 0, 0);
    context.restore();
    context.strokeStyle = `rgb(${mix(channels(colours[i]), [255, 255, 255], OUTLINE)})`;
    context.stroke(path);
  });
}

/**
 * The border of what is painted: white dashes on black, to be seen on every ground.
 * @param {HTMLCanvasElement} canvas
 * @param {import("./painting.mjs").Painting} painting
 * @param {number} line width in pixels of the canvas
 */
export function paintBorder(canvas, { grid: [height, width], cells }, line) {
  const [rows, columns] = [edges(canvas.height, height), edges(canvas.width, width)];
  const path = new Path2D();
  const side = (x, y, toX, toY) => {
    path.moveTo(columns[x], rows[y]);
    path.lineTo(columns[toX], rows[toY]);
  };
  cells.forEach((painted, cell) => {
    if (!painted) return;
    const [y, x] = [Math.floor(cell / width), cell % width];
    if (!y || !cells[cell - width]) side(x, y, x + 1, y);
    if (!x || !cells[cell - 1]) side(x, y, x, y + 1);
    if (y === height - 1 || !cells[cell + width]) side(x, y + 1, x + 1, y + 1);
    if (x === width - 1 || !cells[cell + 1]) side(x + 1, y, x + 1, y + 1);
  });
  const context = canvas.getContext("2d");
  context.lineWidth = 2 * line;
  context.strokeStyle = "#000";
  context.stroke(path);
  context.setLineDash([3 * line, 2 * line]);
  context.strokeStyle = "#fff";
  context.stroke(path);
  context.setLineDash([]);
}
