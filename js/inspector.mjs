/** The inspector: the picture, what is known about the token under the pointer, the bounds and what they cost. */

import { api } from "../../scripts/api.js";
import { BoundsEditor } from "./bounds.mjs";
import { forwardToCanvas } from "./canvas.mjs";
import { decode } from "./decode.mjs";
import { counts, redrawnBy, shareOfDense } from "./dispatch.mjs";
import { button, element, gridName, swatch } from "./dom.mjs";
import { beginChange, dispatchOf, endChange, isEditable, readBounds, resetBounds, writeBounds } from "./graph.mjs";
import { PictureView } from "./picture.mjs";

const VIEWS = { heatmap: "Heatmap", overlay: "Overlay", image: "Image" };
const VIEW_PROPERTY = "moss_view"; // kept with the node, so that undo and reload do not change it
const DRAFTED = "#7f7f7f";

const thousands = (number) => number.toLocaleString("en-US");

export class Inspector {
  /**
   * @param {object} node of the host
   * @param {"heatmap" | "overlay"} view shown at first
   */
  constructor(node, view) {
    Object.assign(this, { node, defaultView: view, inspection: null, index: 0, bounds: [], problem: "" });
    this.picture = new PictureView(() => this.#read());
    this.editor = new BoundsEditor({
      start: beginChange,
      change: (bounds) => writeBounds(dispatchOf(this.node), bounds),
      end: endChange,
    });
    this.#build();
    this.resized = new ResizeObserver(() => this.#paint());
    this.watch();
  }

  #build() {
    this.views = Object.entries(VIEWS).map(([view, text]) => button(text, { value: view, onclick: () => this.#setView(view) }));
    const previous = button("\u2039", { title: "Previous picture", ariaLabel: "Previous picture", onclick: () => this.#turn(-1) });
    const next = button("\u203a", { title: "Next picture", ariaLabel: "Next picture", onclick: () => this.#turn(1) });
    this.number = element("span", "");
    this.batch = element("div", "moss-batch", {}, previous, this.number, next);
    this.bar = element("div", "moss-bar", {}, element("div", "moss-views", {}, ...this.views), this.batch);
    this.reading = element("div", "moss-read");
    this.reading.setAttribute("aria-live", "polite");
    this.cost = element("span", "");
    this.reset = button("Reset", { title: "Back to the paper's bounds", onclick: () => this.#reset() });
    this.foot = element("div", "moss-foot", {}, this.cost, this.reset);
    this.root = element("div", "moss-inspector", {}, this.bar, this.picture.element, this.reading, this.editor.element, this.foot);
    forwardToCanvas(this.root);
    this.#arrange();
  }

  /** Follow the size of the widget; call again after `rest`. */
  watch() {
    this.resized.observe(this.picture.element);
  }

  /** Stop following, when the node is removed. */
  rest() {
    this.resized.disconnect();
  }

  /**
   * Show what an executed node sent.
   * @param {object} payload `ui.moss_inspector[0]`
   */
  show(payload) {
    if (payload === this.payload) return;
    this.payload = payload;
    try {
      this.inspection = decode(payload);
      this.bounds = this.inspection.bounds;
    } catch (error) {
      this.inspection = null;
      this.picture.say(error.message);
    }
    this.index = Math.min(this.index, (this.inspection?.pictures.length ?? 1) - 1);
    this.#arrange();
    this.#select();
  }

  /** Read the bounds from the widgets again, and show them. */
  refresh() {
    if (!this.inspection) return;
    const dispatch = dispatchOf(this.node);
    const found = dispatch ? readBounds(dispatch, this.inspection.grids.length) : { bounds: this.inspection.bounds };
    this.bounds = found.bounds ?? this.bounds;
    this.problem = found.problem ?? "";
    this.editable = Boolean(dispatch) && isEditable(dispatch);
    this.reset.hidden = !this.editable;
    this.#paint();
    this.#read();
    this.#count();
  }

  #arrange() {
    const empty = !this.inspection;
    for (const part of [this.bar, this.reading, this.editor.element, this.foot]) part.hidden = empty;
    this.batch.hidden = empty || this.inspection.pictures.length < 2;
  }

  #select() {
    if (!this.inspection) return;
    const { pictures } = this.inspection;
    const picture = pictures[this.index];
    this.number.textContent = `${this.index + 1}/${pictures.length}`;
    this.picture.show(this.inspection, picture, picture.file ? api.apiURL(`/view?${new URLSearchParams(picture.file)}`) : "");
    this.editor.show(this.inspection, picture);
    this.refresh();
  }

  #turn(by) {
    const { length } = this.inspection.pictures;
    this.index = (this.index + by + length) % length;
    this.#select();
  }

  get view() {
    return this.node.properties?.[VIEW_PROPERTY] ?? this.defaultView;
  }

  #setView(view) {
    this.node.properties[VIEW_PROPERTY] = view;
    this.#paint();
  }

  #reset() {
    beginChange();
    resetBounds(dispatchOf(this.node));
    endChange();
  }

  #paint() {
    if (!this.inspection) return;
    for (const toggle of this.views) toggle.setAttribute("aria-pressed", toggle.value === this.view);
    this.picture.paint(this.view, this.bounds);
    this.editor.paint(this.bounds, this.editable);
  }

  #read() {
    const lines = this.picture.cell ? this.#describe(this.picture.cell) : this.problem ? [[this.problem]] : [this.#legend()];
    this.reading.replaceChildren(...lines.map((line) => element("div", "", {}, ...line)));
  }

  #describe(cell) {
    const { grids, final, colours, pictures } = this.inspection;
    const { frequency, percentile, ranks } = pictures[this.index];
    const at = cell.row * final[1] + cell.column;
    const busier = Math.min(99, Math.round((100 * percentile[at]) / 255)); // no token is busier than itself
    const scales = redrawnBy(grids, ranks, this.bounds, final, cell).map((i) => swatch(colours[i], gridName(grids[i])));
    return [
      [`Row ${cell.row + 1}, col ${cell.column + 1} \u00b7 frequency ${frequency[at].toPrecision(3)} \u00b7 busier than ${busier} %`],
      scales.length ? ["Redrawn at", ...scales] : [swatch(DRAFTED, "Stays as drafted")],
    ];
  }

  #legend() {
    const { grids, colours } = this.inspection;
    const tokens = counts(grids, this.bounds);
    const scales = grids.map((grid, i) => swatch(colours[i], `${gridName(grid)}: ${thousands(tokens[i])}`));
    return [...scales, swatch(DRAFTED, "as drafted")];
  }

  #count() {
    const { grids, work, draftTokens, kvBytes } = this.inspection;
    const refined = counts(grids, this.bounds).reduce((sum, tokens) => sum + tokens, 0);
    const share = Math.round(100 * shareOfDense(work, draftTokens, refined));
    const mebibytes = kvBytes / 2 ** 20;
    const kv = mebibytes < 100 ? mebibytes.toPrecision(3) : thousands(Math.round(mebibytes));
    this.cost.textContent = `${thousands(refined)} tokens \u00b7 KV ${kv} MiB \u00b7 ${share} % of dense`;
    this.cost.title = "Tokens that are redrawn, KV cache of the draft, and predicted work as a share of the plain model's";
  }
}
