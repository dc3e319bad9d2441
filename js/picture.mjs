/** The picture of the inspector: three views of one picture, and the token that is looked at in it. */

import { element, fitCanvas } from "./dom.mjs";
import { colourTable, overlayLayers, paintBorder, paintHeatmap, paintOverlay, paintPicture } from "./draw.mjs";
import { onGrid } from "./painting.mjs";

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const LABEL = "Map of the tokens. Point at a token to read it, or move with the arrow keys.";

export class PictureView {
  /** @param {(cell: {row: number, column: number} | null) => void} onCell another token is looked at, or none */
  constructor(onCell) {
    this.onCell = onCell;
    this.cell = null;
    this.reach = 0; // of the outline, in cells around the one that is looked at
    this.canvas = element("canvas", "");
    this.outline = element("div", "moss-cell", { hidden: true });
    this.frame = element("div", "moss-picture", { tabIndex: 0 }, this.canvas, this.outline);
    this.frame.setAttribute("role", "application");
    this.frame.setAttribute("aria-label", LABEL);
    this.hint = element("div", "moss-hint");
    this.element = element("div", "moss-stage", {}, this.hint, this.frame);
    this.#listen();
  }

  /** Show a line of text instead of a picture. */
  say(text) {
    this.hint.textContent = text;
    this.hint.hidden = !text;
    this.frame.hidden = Boolean(text);
  }

  /**
   * @param {import("./decode.mjs").Inspection} inspection
   * @param {import("./decode.mjs").Picture} picture of the batch
   * @param {string} url of the drafted picture
   */
  show(inspection, picture, url) {
    if (String(this.inspection?.final) !== String(inspection.final)) this.look(null);
    Object.assign(this, { inspection, picture, layers: null });
    this.table = colourTable(inspection.palette);
    this.frame.style.setProperty("--moss-aspect", inspection.final[1] / inspection.final[0]);
    this.image = Object.assign(new Image(), { onload: () => this.#loaded(), onerror: () => this.#loaded(), src: url });
  }

  #loaded() {
    this.layers = null;
    if (this.view) this.paint(this.view, this.state);
  }

  /**
   * @param {"heatmap" | "overlay" | "image"} view
   * @param {import("./reading.mjs").State} state
   */
  paint(view, state) {
    Object.assign(this, { view, state });
    const ready = this.image.complete;
    const image = ready && this.image.naturalWidth ? this.image : null;
    this.say(view === "image" && ready && !image ? "The picture is no longer there. Run the graph again." : "");
    const scale = fitCanvas(this.canvas);
    if (!scale) return;
    if (view === "heatmap") paintHeatmap(this.canvas, this.picture.percentile, this.inspection.final, this.table);
    else if (view === "overlay") this.#paintOverlay(image, scale);
    else if (image) paintPicture(this.canvas, image);
    if (state.painting) paintBorder(this.canvas, onGrid(state.painting, this.inspection.final), scale);
  }

  #paintOverlay(image, scale) {
    const { width, height } = this.canvas;
    if (this.layers?.dimmed.width !== width || this.layers?.dimmed.height !== height) {
      this.layers = overlayLayers(image, width, height, this.inspection.colours);
    }
    paintOverlay(this.canvas, this.layers, this.inspection, this.state.ranks, this.state.bounds, scale);
  }

  /** Look at a token, or at none. */
  look(cell) {
    if (cell?.row === this.cell?.row && cell?.column === this.cell?.column) return;
    this.cell = cell;
    this.outline.hidden = !cell;
    if (cell) {
      const [height, width] = this.inspection.final;
      const side = 2 * this.reach + 1;
      const corner = { left: (cell.column - this.reach) / width, top: (cell.row - this.reach) / height };
      const box = { ...corner, width: side / width, height: side / height };
      for (const [side, part] of Object.entries(box)) this.outline.style[side] = `${100 * part}%`;
    }
    this.onCell(cell);
  }

  #listen() {
    const follow = (event) => this.look(this.cellAt(event));
    this.frame.addEventListener("pointermove", follow);
    this.frame.addEventListener("pointerdown", follow);
    this.frame.addEventListener("pointerleave", () => this.look(null));
    this.frame.addEventListener("blur", () => this.look(null));
    this.frame.addEventListener("keydown", (event) => this.#press(event));
  }

  /** The cell under the pointer, or the nearest one. */
  cellAt({ clientX, clientY }) {
    const [height, width] = this.inspection.final;
    const area = this.frame.getBoundingClientRect();
    const part = (at, from, size, cells) => Math.min(cells - 1, Math.max(0, Math.floor(((at - from) / size) * cells)));
    return { row: part(clientY, area.top, area.height, height), column: part(clientX, area.left, area.width, width) };
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in STEPS || event.key === "Escape")) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") return this.look(null);
    const [height, width] = this.inspection.final;
    const from = this.cell ?? { row: height >> 1, column: width >> 1 };
    const [down, right] = this.cell ? STEPS[event.key] : [0, 0]; // the first press shows where one is
    const inside = (value, cells) => Math.min(cells - 1, Math.max(0, value));
    this.look({ row: inside(from.row + down, height), column: inside(from.column + right, width) });
  }
}
