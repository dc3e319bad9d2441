/**
 * The inspector: the picture, what is known about the token under the pointer, the bounds and what they cost.
 */

import { api } from "../../scripts/api.js";
import { BoundsEditor } from "./bounds.mjs";
import { Brush } from "./brush.mjs";
import { forwardToCanvas } from "./canvas.mjs";
import { decode, sameMap } from "./decode.mjs";
import { button, element } from "./dom.mjs";
import { onceAFrame } from "./frame.mjs";
import * as graph from "./graph.mjs";
import { onGrid, readPainting, stroke, writePainting } from "./painting.mjs";
import { PictureView } from "./picture.mjs";
import { rankTokens } from "./ranks.mjs";
import { costLine, describeToken, legend } from "./reading.mjs";
import { Sizes } from "./sizes.mjs";
import { stateOf } from "./state.mjs";
import { keepValues } from "./values.mjs";
import { say } from "./words.mjs";

const VIEWS = ["heatmap", "overlay", "image"];
const VIEW_PROPERTY = "moss_view"; // kept with the node, so that a saved graph opens as it was left

const serials = new WeakMap(); // numbers of objects, to tell one from another
let made = 0;

function serial(object) {
  if (!serials.has(object)) serials.set(object, (made += 1));
  return serials.get(object);
}

export class Inspector {
  /**
   * @param {object} node of the host
   * @param {"heatmap" | "overlay"} view shown at first
   */
  constructor(node, view) {
    Object.assign(this, { node, defaultView: view, failure: "", ranked: {}, painted: {} });
    this.paintSoon = onceAFrame(() => this.#paint());
    this.readSoon = onceAFrame(() => this.#read());
    this.picture = new PictureView(this.readSoon, () => this.#repaint());
    this.editor = new BoundsEditor({
      start: graph.beginChange,
      change: (pass) => graph.writePass(graph.dispatchOf(this.node), pass, this.inspection),
      end: graph.endChange,
    });
    this.brush = new Brush(this.picture, {
      start: graph.beginChange,
      stroke: (from, to, value) => this.#stroke(from, to, value),
      end: graph.endChange,
      clear: () => this.#change(() => graph.writePaintingText(this.node, "")),
      changed: this.readSoon,
    });
    this.sizes = new Sizes(this.paintSoon, this.picture.element, this.picture.canvas, this.editor.canvas);
    this.#build();
    this.watch();
  }

  #build() {
    const toggle = (view) => button(say(`view.${view}`), { value: view, onclick: () => this.#setView(view) });
    this.views = VIEWS.map(toggle);
    const views = element("div", "moss-views", {}, ...this.views);
    this.bar = element("div", "moss-bar", {}, views, this.#buildBatch(), this.brush.toggle);
    this.words = element("div", "moss-words");
    this.words.setAttribute("aria-live", "polite");
    this.legend = element("div", "moss-legend");
    this.reading = element("div", "moss-read", {}, this.legend, this.words, this.brush.panel);
    this.note = element("div", "moss-notice");
    this.cost = element("span", "", { title: say("cost.title") });
    const back = () => this.#change(() => graph.resetPass(graph.dispatchOf(this.node)));
    this.reset = button(say("reset"), { title: say("reset.title"), onclick: back });
    this.foot = element("div", "moss-foot", {}, this.cost, this.reset);
    const parts = [this.bar, this.picture.element, this.reading, this.note, this.editor.element, this.foot];
    this.root = element("div", "moss-inspector", {}, ...parts);
    // widgets may also change without a word
    this.root.addEventListener("pointerenter", () => this.refresh());
    forwardToCanvas(this.root);
    this.clear();
  }

  #buildBatch() {
    const turn = (by, sign, name) =>
      button(sign, { title: name, ariaLabel: name, onclick: () => this.#turn(by) });
    this.number = element("span", "");
    const previous = turn(-1, "\u2039", say("picture.previous"));
    const next = turn(1, "\u203a", say("picture.next"));
    this.batch = element("div", "moss-batch", {}, previous, this.number, next);
    return this.batch;
  }

  /** Follow the size of the widget; call again after `rest`. */
  watch() {
    this.sizes.watch();
  }

  /** Stop following, when the node is removed. */
  rest() {
    this.sizes.rest();
  }

  /** Go on as the inspector of the same node was before undo. */
  resume(before) {
    this.brush.resume(before.brush);
    this.index = before.index;
  }

  /**
   * Show what an executed node sent.
   * @param {object} payload `ui.moss_inspector[0]`
   */
  show(payload) {
    if (payload === this.payload) return;
    Object.assign(this, { payload, state: null, failure: "" });
    try {
      this.inspection = decode(payload);
    } catch (error) {
      this.clear();
      this.picture.say(error.message);
      return;
    }
    this.index = Math.min(this.index, this.inspection.pictures.length - 1);
    this.#arrange();
    this.#select();
  }

  /** Show nothing, as before the first run. */
  clear() {
    Object.assign(this, { payload: null, inspection: null, state: null, index: this.index ?? 0 });
    this.picture.look(null);
    this.picture.say(this.failure || say("inspector.empty"));
    this.#arrange();
  }

  /**
   * Repeat why the last run stopped.
   * @param {string} sentence "" = it did not
   */
  fail(sentence) {
    if (this.failure === sentence) return;
    this.failure = sentence;
    if (this.inspection) this.refresh();
    else this.clear();
  }

  /**
   * Keep the widgets of MoSs Token Dispatch as they should be; within the event that changed them, so that
   * undo
   * does both.
   */
  keep() {
    if (this.node.comfyClass === graph.DISPATCH) {
      keepValues(this.node, graph.readDispatch(this.node), this.inspection);
    }
  }

  /** Read bounds and painting from the widgets again, and show them. */
  refresh() {
    this.keep();
    if (!this.inspection) return;
    const dispatch = graph.dispatchOf(this.node);
    const said = dispatch && graph.readDispatch(dispatch);
    const { inspection, index, state: last } = this;
    const rank = (text) => this.#rank(text);
    this.state = stateOf({ inspection, ran: this.#ran(dispatch), said, last, index, rank });
    this.reset.hidden = !this.state.editable;
    this.brush.toggle.hidden = !graph.isPaintable(this.node);
    this.brush.clear.disabled = !said?.painting;
    this.masked = Boolean(said?.masked);
    this.cost.textContent = costLine(inspection, this.state);
    this.legend.replaceChildren(...legend(inspection, this.state));
    this.#noteDown();
    this.#paint(); // at once: until then a drag would go on from bounds of a moment ago
    this.#read();
  }

  /** What the MoSs Token Dispatch was last sent, if that was for the map that is shown here. */
  #ran(dispatch) {
    if (!dispatch) return null;
    if (dispatch === this.node) return this.inspection;
    const payload = graph.lastOutput(dispatch)?.moss_inspector?.[0];
    return payload && sameMap(payload, this.payload) ? decode(payload) : null;
  }

  /** Ranks for what is painted now; those that were sent are for what was painted then. */
  #rank(text) {
    const picture = this.inspection.pictures[this.index];
    if (this.ranked.picture !== picture || this.ranked.text !== text) {
      const ranks = rankTokens(this.inspection, picture, readPainting(text));
      this.ranked = { picture, text, ranks };
    }
    return this.ranked.ranks;
  }

  #noteDown() {
    const { note, editable } = this.state;
    this.note.hidden = !note && !this.failure;
    this.note.textContent = this.failure || (note ? say(note.key, note.values) : "");
    this.note.dataset.kind = this.failure ? "failed" : editable ? "problem" : "locked";
  }

  #arrange() {
    const empty = !this.inspection;
    const parts = [this.bar, this.reading, this.editor.element, this.foot];
    for (const part of parts) part.hidden = empty;
    if (empty) this.note.hidden = true;
    this.batch.hidden = empty || this.inspection.pictures.length < 2;
  }

  #select() {
    const { pictures } = this.inspection;
    const picture = pictures[this.index];
    const url = picture.file ? api.apiURL(`/view?${new URLSearchParams(picture.file)}`) : "";
    this.number.textContent = `${this.index + 1}/${pictures.length}`;
    this.picture.show(this.inspection, picture, url);
    this.editor.show(this.inspection, picture);
    this.painted = {};
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
    this.paintSoon();
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

  #repaint() {
    this.painted = {};
    this.paintSoon();
  }

  /** Paint what has changed since it was last painted; nothing where it cannot be seen. */
  #paint() {
    const [stage, canvas, chart] = this.sizes.elements.map((each) => this.sizes.of(each));
    if (!this.state || !stage[0] || !stage[1]) return;
    const view = this.#view;
    const { bounds, scales, ranks, text, editable } = this.state;
    const pass = [bounds, scales, ...ranks.map((each) => serial(each))];
    const changed = (part, ...now) => {
      const look = now.join(";");
      const differs = this.painted[part] !== look;
      this.painted[part] = look;
      return differs;
    };
    if (changed("picture", view, text, canvas, view === "overlay" ? pass : "")) {
      for (const toggle of this.views) toggle.setAttribute("aria-pressed", toggle.value === view);
      this.picture.paint(view, this.state, canvas);
      this.picture.outlineCell();
    }
    if (changed("bounds", pass, editable, chart, this.#ink)) {
      this.editor.paint(this.state, this.#ink, chart);
    }
  }

  /** The theme's colour of text; the page is asked for it only when the theme may have changed. */
  get #ink() {
    const theme = [document.body.className, document.documentElement.getAttribute("style")].join(";");
    if (this.theme !== theme) Object.assign(this, { theme, ink: getComputedStyle(this.root).color });
    return this.ink;
  }

  #read() {
    this.picture.outlineCell();
    if (!this.state) return;
    const { cell } = this.picture;
    const lines = this.#lines(cell);
    this.brush.panel.hidden = Boolean(cell) || !this.brush.on;
    this.legend.classList.toggle("moss-behind", lines.length > 0);
    this.words.replaceChildren(...lines.map((line) => element("div", "", {}, ...line)));
  }

  /** In place of the legend. */
  #lines(cell) {
    if (cell) return describeToken(this.inspection, this.inspection.pictures[this.index], this.state, cell);
    if (this.brush.on) return [[say(this.masked ? "brush.joined" : "brush.how")]];
    return [];
  }
}
