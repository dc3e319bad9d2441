/** The sheet of MoSs Pick Drafts: every draft with its map, to be picked by a click. */

import { api } from "../../scripts/api.js";
import { forwardToCanvas } from "./canvas.mjs";
import { element } from "./dom.mjs";
import { beginChange, endChange, readText, writeText } from "./graph.mjs";
import { formatPicks, parsePicks, pick } from "./picks.mjs";
import { addElement } from "./widget.mjs";
import { say } from "./words.mjs";

const HEIGHT = 160; // pixels, the least
const WIDTH = 300; // of the node, the least
const NEW_SIZE = [420, 420]; // of a new node, the least

const address = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);

export class Sheet {
  /** @param {object} node of the host, on which it is shown */
  constructor(node) {
    Object.assign(this, { node, drafts: null });
    this.hint = element("div", "moss-hint", { textContent: say("sheet.empty") });
    this.cards = element("div", "moss-cards");
    this.root = element("div", "moss-inspector moss-sheet", {}, this.hint, this.cards);
    forwardToCanvas(this.root);
    addElement(node, "moss_drafts", this.root, { label: say("sheet.label"), height: HEIGHT, width: WIDTH });
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, NEW_SIZE[0]), Math.max(height, NEW_SIZE[1])]);
  }

  /** @param {object | undefined} output of the node */
  show(output) {
    const drafts = output?.moss_drafts?.[0];
    if (!drafts || drafts === this.drafts) return;
    this.drafts = drafts;
    this.hint.hidden = true;
    this.root.style.setProperty("--moss-aspect", drafts.size[0] / drafts.size[1]);
    this.cards.replaceChildren(...drafts.pictures.map((_, index) => this.#card(index)));
    this.refresh();
  }

  #card(index) {
    const { pictures, maps, seeds } = this.drafts;
    const images = [pictures[index], maps?.[index]].filter(Boolean).map((file) => (
      element("img", "", { src: address(file), alt: "", draggable: false })
    ));
    const name = say("sheet.draft", { number: index + 1, seed: seeds?.[index] ?? "" });
    const onclick = (event) => this.#pick(index, event.shiftKey || event.ctrlKey || event.metaKey);
    const shown = element("span", "moss-pair", {}, ...images);
    return element("button", "moss-card", { type: "button", title: say("sheet.how"), onclick }, shown, name);
  }

  #pick(index, more) {
    if (readText(this.node, "picks") === undefined) return; // comes through a connected input
    beginChange();
    writeText(this.node, "picks", formatPicks(pick(this.#picked(), index, more)));
    endChange();
    this.refresh();
  }

  #picked() {
    const text = readText(this.node, "picks");
    const typed = text === undefined ? null : parsePicks(text, this.drafts.pictures.length);
    return typed ?? this.drafts.picked;
  }

  /** Show which ones the widget picks now. */
  refresh() {
    if (!this.drafts) return;
    const picked = this.#picked();
    [...this.cards.children].forEach((card, index) => {
      card.setAttribute("aria-pressed", picked.includes(index));
    });
  }

  /**
   * Repeat why the last run stopped.
   * @param {string} sentence "" = it did not
   */
  fail(sentence) {
    this.hint.textContent = sentence || say("sheet.empty");
    this.hint.hidden = !sentence && Boolean(this.drafts);
  }
}
