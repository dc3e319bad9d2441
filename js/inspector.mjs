/** The inspector: the picture, what is known about the token under the pointer, the bounds and what they cost. */

import { api } from "../../scripts/api.js";
import { BoundsEditor } from "./bounds.mjs";
import { Brush } from "./brush.mjs";
import { forwardToCanvas } from "./canvas.mjs";
import { decode } from "./decode.mjs";
import { button, element } from "./dom.mjs";
import * as graph from "./graph.mjs";
import { onGrid, readPainting, stroke, writePainting } from "./painting.mjs";
import { PictureView } from "./picture.mjs";
import { rankTokens } from "./ranks.mjs";
import { costLine, describeToken, legend } from "./reading.mjs";

const VIEWS = { heatmap: "Heatmap", overlay: "Overlay", image: "Image" };
const VIEW_PROPERTY = "moss_view"; // kept with the node, so that a saved graph opens as it was left
const COST = "Tokens that are redrawn, KV cache of the draft, and predicted work as a share of the plain model's";
const LINKED = "The bounds come through a connected input; those of the last run are shown.";
const EMPTY = "Run the graph to see the map.";
const PAINT = "Drag to paint what is redrawn first; Shift erases.";
const JOINED = "Run the graph to join the painting with the mask.";

export class Inspector {
  /**
   * @param {object} node of the host
   * @param {"heatmap" | "overlay"} view shown at first
   */
  constructor(node, view) {
    Object.assign(this, { node, defaultView: view, problem: "", ranked: {} });
    this.picture = new PictureView(() => this.#read());
    this.editor = new BoundsEditor({
      start: graph.beginChange,
      change: (bounds) => graph.writeBounds(graph.dispatchOf(this.node), bounds),
      end: graph.endChange,
    });
    this.brush = new Brush(this.picture, {
      start: graph.beginChange,
      stroke: (from, to, value) => this.#stroke(from, to, value),
      end: graph.endChange,
      clear: () => this.#change(() => graph.writePaintingText(this.node, "")),
      changed: () => this.#read(),
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
    const views = element("div", "moss-views", {}, ...this.views);
    this.bar = element("div", "moss-bar", {}, views, this.batch, this.brush.toggle);
    this.words = element("div", "moss-words");
    this.words.setAttribute("aria-live", "polite");
    this.reading = element("div", "moss-read", {}, this.words, this.brush.panel);
    this.cost = element("span", "", { title: COST });
    const back = () => this.#change(() => graph.resetBounds(graph.dispatchOf(this.node)));
    this.reset = button("Reset", { title: "Back to the bounds for this model", onclick: back });
    this.foot = element("div", "moss-foot", {}, this.cost, this.reset);
    this.root = element("div", "moss-inspector", {}, this.bar, this.picture.element, this.reading, this.editor.element, this.foot);
    this.root.addEventListener("pointerenter", () => this.refresh()); // widgets may also change without a word
    forwardToCanvas(this.root);
    this.clear();
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
    } catch (error) {
      this.clear();
      this.picture.say(error.message);
      return;
    }
    this.state = null;
    this.index = Math.min(this.index, this.inspection.pictures.length - 1);
    this.#arrange();
    this.#select();
  }

  /** Show nothing, as before the first run. */
  clear() {
    Object.assign(this, { payload: null, inspection: null, state: null, index: 0 });
    this.picture.look(null);
    this.picture.say(EMPTY);
    this.#arrange();
  }

  /** Read bounds and painting from the widgets again, and show them. */
  refresh() {
    if (!this.inspection) return;
    const dispatch = graph.dispatchOf(this.node);
    const { bounds, grids, known } = this.inspection;
    this.editable = Boolean(dispatch) && graph.isEditable(dispatch);
    const found = this.editable ? graph.readBounds(dispatch, grids.length, known) : { bounds, problem: dispatch ? LINKED : "" };
    const text = dispatch ? graph.paintingText(dispatch) : "";
    this.problem = found.problem ?? "";
    this.state = {
      bounds: found.bounds ?? this.state?.bounds ?? bounds,
      ranks: dispatch && !graph.isMasked(dispatch) ? this.#rank(text) : this.inspection.pictures[this.index].ranks,
      painting: readPainting(text),
    };
    this.reset.hidden = !this.editable;
    this.brush.toggle.hidden = !graph.isPaintable(this.node);
    this.brush.clear.disabled = !text;
    this.cost.textContent = costLine(this.inspection, this.state.bounds);
    this.#paint();
    this.#read();
  }

  /** Ranks for what is painted now; those that were sent are for what was painted then. */
  #rank(text) {
    const picture = this.inspection.pictures[this.index];
    if (this.ranked.picture !== picture || this.ranked.text !== text) {
      const { final, grids } = this.inspection;
      this.ranked = { picture, text, ranks: rankTokens(picture.frequency, final, grids, readPainting(text)) };
    }
    return this.ranked.ranks;
  }

  #arrange() {
    const empty = !this.inspection;
    for (const part of [this.bar, this.reading, this.editor.element, this.foot]) part.hidden = empty;
    this.batch.hidden = empty || this.inspection.pictures.length < 2;
  }

  #select() {
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

  get #view() {
    return this.node.properties?.[VIEW_PROPERTY] ?? this.defaultView;
  }

  #setView(view) {
    this.node.properties[VIEW_PROPERTY] = view;
    this.#paint();
  }

  #change(write) {
    graph.beginChange();
    write();
    graph.endChange();
  }

  #stroke(from, to, value) {
    const painting = onGrid(readPainting(graph.paintingText(this.node)), this.inspection.final);
    stroke(painting, from, to, this.brush.size, value);
    graph.writePaintingText(this.node, writePainting(painting));
  }

  #paint() {
    if (!this.state) return;
    for (const toggle of this.views) toggle.setAttribute("aria-pressed", toggle.value === this.#view);
    this.picture.paint(this.#view, this.state);
    this.editor.paint(this.state, this.editable);
  }

  #read() {
    if (!this.state) return;
    const { cell } = this.picture;
    this.brush.panel.hidden = Boolean(cell || this.problem) || !this.brush.on;
    this.words.replaceChildren(...this.#lines(cell).map((line) => element("div", "", {}, ...line)));
  }

  #lines(cell) {
    if (cell) return describeToken(this.inspection, this.inspection.pictures[this.index], this.state, cell);
    if (this.problem) return [[this.problem]];
    if (this.brush.on) return [[graph.isMasked(this.node) ? JOINED : PAINT]];
    return [legend(this.inspection, this.state.bounds)];
  }
}
