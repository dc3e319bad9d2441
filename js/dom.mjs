/** Small helpers for building the inspector's elements. */

/**
 * @param {string} tag
 * @param {string} className
 * @param {object} settings properties of the new element
 * @param {...(Node | string)} children
 */
export function element(tag, className, settings = {}, ...children) {
  const made = Object.assign(document.createElement(tag), { className, ...settings });
  made.append(...children);
  return made;
}

/** @param {object} settings properties, such as title and onclick */
export function button(text, settings) {
  return element("button", "", { type: "button", textContent: text, ...settings });
}

/** A swatch of a scale's colour with a text. */
export function swatch(colour, text) {
  const made = element("span", "moss-scale", { textContent: text });
  made.style.setProperty("--moss-colour", colour);
  return made;
}

/** @param {[number, number]} grid height and width; shown as width and height */
export const gridName = ([height, width]) => `${width} \u00d7 ${height}`;

const SHARPNESS = 2; // pixels of a canvas for one of the page: sharp when the graph is zoomed in, too
const LARGEST = 1536; // pixels of a canvas' side

/**
 * Give a canvas as many pixels as it is shown at, and some more.
 * @param {HTMLCanvasElement} canvas
 * @param {[number, number]} size width and height that it is shown at
 * @returns {number} pixels of the canvas for one of the page; 0 while it is not shown
 */
export function fitCanvas(canvas, [width, height]) {
  if (!width || !height) return 0;
  const scale = Math.min(SHARPNESS, LARGEST / Math.max(width, height));
  const [pixels, rows] = [Math.round(width * scale), Math.round(height * scale)];
  const fits = canvas.width === pixels && canvas.height === rows;
  if (!fits) Object.assign(canvas, { width: pixels, height: rows });
  return scale;
}
