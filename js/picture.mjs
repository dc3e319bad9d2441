/** The picture of the inspector: three views of one picture, and the token that is looked at in it. */

import { element, fitCanvas } from "./dom.mjs";
import * as draw from "./draw.mjs";
import { onGrid } from "./painting.mjs";
import { say } from "./words.mjs";

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class PictureView {
  /**
   * @param {() => void} onCell another token is looked at, or none: `cell`
   * @param {() => void} onLoad the drafted picture has come, or failed to
   */
  constructor(onCell, onLoad) {
    Object.assign(this, { onCell, onLoad });
    this.cell = null;
    this.reach = 0; // of the outline, in cells around the one that is looked at
    this.canvas = element("canvas", "");
    this.outline = element("div", "moss-cell", { hidden: true });
    this.frame = element("div", "moss-picture", { tabIndex: 0 }, this.canvas, this.outline);
    this.frame.setAttribute("role", "application");
    this.frame.setAttribute("aria-label", say("picture.label"));
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
    this.table = draw.colourTable(inspection.palette);
    this.frame.style.setProperty("--moss-aspect", inspection.final[1] / inspection.final[0]);
    const loaded = () => this.#loaded();
    this.image = Object.assign(new Image(), { onload: loaded, onerror: loaded, src: url });
  }

  #loaded() {
    this.layers = null;
    this.onLoad();
  }

  /**
   * @param {"heatmap" | "overlay" | "image"} view
   * @param {import("./state.mjs").State} state
   * @param {[number, number]} size that the canvas is shown at
   */
  paint(view, state, size) {
    Object.assign(this, { state, size });
    const ready = this.image.complete;
    const image = ready && this.image.naturalWidth ? this.image : null;
    this.say(view === "image" && ready && !image ? say("picture.gone") : "");
    const scale = fitCanvas(this.canvas, size);
    if (!scale) return;
    const { final } = this.inspection;
    if (view === "heatmap") draw.paintHeatmap(this.canvas, this.picture.percentile, final, this.table);
    else if (view === "overlay") this.#paintOverlay(image, scale);
    else if (image) draw.paintPicture(this.canvas, image);
    if (state.painting) draw.paintBorder(this.canvas, onGrid(state.painting, final), scale);
  }

  #paintOverlay(image, scale) {
    const { width, height } = this.canvas;
    const made = String([width, height, this.state.colours]);
    if (!this.layers || this.made !== made) {
      this.made = made;
      this.layers = draw.overlayLayers(image, width, height, this.state.colours);
    }
    draw.paintOverlay(this.canvas, this.layers, this.state, scale);
  }

  /** Look at a token, or at none. */
  look(cell) {
    if (cell?.row === this.cell?.row && cell?.column === this.cell?.column) return;
    this.cell = cell;
    this.onCell();
  }

  /** Lay the outline around the cell; moved by a transform, so that nothing is laid out for it. */
  outlineCell() {
    const { cell, reach, size } = this;
    this.outline.hidden = !cell || !size;
    if (this.outline.hidden) return;
    const [height, width] = this.inspection.final;
    const [across, down] = [size[0] / width, size[1] / height];
    const corner = [(cell.column - reach) * across, (cell.row - reach) * down];
    const sides = [across, down].map((pixels) => `${(2 * reach + 1) * pixels}px`);
    const transform = `translate(${corner.map((pixels) => `${pixels}px`)})`;
    Object.assign(this.outline.style, { width: sides[0], height: sides[1], transform });
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
    const part = (at, size, cells) => Math.min(cells - 1, Math.max(0, Math.floor((at / size) * cells)));
    return {
      row: part(clientY - area.top, area.height, height),
      column: part(clientX - area.left, area.width, width),
    };
  }

  #press(event) {
    const known = event.key in STEPS || event.key === "Escape";
    if (!known || event.ctrlKey || event.metaKey || event.altKey) return;
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
