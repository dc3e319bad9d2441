/** The brush: paints or erases cells of the map by dragging, and the small panel with its settings. */

import { button, element } from "./dom.mjs";
import { say } from "./words.mjs";

const SIZES = [1, 3, 5]; // cells

export class Brush {
  /**
   * @param {import("./picture.mjs").PictureView} picture
   * @param {object} events
   * @param {() => void} events.start a stroke begins
   * @param {(from: object, to: object, value: 0 | 1) => void} events.stroke between two cells; 0 erases
   * @param {() => void} events.end the stroke is complete
   * @param {() => void} events.clear erase all
   * @param {() => void} events.changed switched on or off
   */
  constructor(picture, events) {
    Object.assign(this, { picture, events, on: false, size: SIZES[1] });
    const flip = () => this.#switch(!this.on);
    this.toggle = button(say("brush.paint"), { title: say("brush.paint.title"), onclick: flip });
    this.sizes = SIZES.map((size) => this.#sizeButton(size));
    this.clear = button(say("brush.clear"), { title: say("brush.clear.title"), onclick: events.clear });
    this.panel = element("div", "moss-brush", {}, say("brush.size"), ...this.sizes, this.clear);
    picture.frame.addEventListener("pointerdown", (event) => this.#begin(event));
    picture.frame.addEventListener("keydown", (event) => this.#press(event));
    this.#show();
  }

  #sizeButton(size) {
    const title = say("brush.size.title", { size });
    return button(String(size), { value: size, title, onclick: () => this.#resize(size) });
  }

  /** Go on as another brush was: of the same node, after undo. */
  resume({ on, size }) {
    Object.assign(this, { on, size });
    this.#show();
  }

  #switch(on) {
    this.on = on;
    this.#show();
    this.events.changed();
  }

  #resize(size) {
    this.size = size;
    this.#show();
  }

  #show() {
    this.toggle.setAttribute("aria-pressed", this.on);
    for (const each of this.sizes) each.setAttribute("aria-pressed", Number(each.value) === this.size);
    this.picture.reach = this.on ? (this.size - 1) / 2 : 0;
  }

  #begin(event) {
    if (!this.on || event.button !== 0) return;
    const value = event.shiftKey ? 0 : 1;
    let last = this.picture.cellAt(event);
    const move = (next) => {
      const cell = this.picture.cellAt(next);
      this.events.stroke(last, cell, value);
      last = cell;
    };
    const grip = new AbortController();
    const release = () => {
      grip.abort();
      this.events.end();
    };
    this.picture.frame.setPointerCapture(event.pointerId);
    this.picture.frame.addEventListener("pointermove", move, { signal: grip.signal });
    // on the window, since the node may be removed meanwhile
    for (const type of ["pointerup", "pointercancel"]) {
      window.addEventListener(type, release, { capture: true, signal: grip.signal });
    }
    this.events.start();
    this.events.stroke(last, last, value);
  }

  #press(event) {
    if (!this.on || event.key !== " " || !this.picture.cell) return;
    event.preventDefault();
    event.stopPropagation();
    this.events.start();
    this.events.stroke(this.picture.cell, this.picture.cell, event.shiftKey ? 0 : 1);
    this.events.end();
  }
}
