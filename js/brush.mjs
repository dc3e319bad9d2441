/** The brush: paints or erases cells of the map by dragging, and the small panel with its settings. */

import { button, element } from "./dom.mjs";

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
    const title = "Paint places that come first; with Shift erase";
    this.toggle = button("Paint", { title, onclick: () => this.#switch(!this.on) });
    this.sizes = SIZES.map((size) => button(String(size), { value: size, title: `Brush of ${size} cells`, onclick: () => this.#resize(size) }));
    this.clear = button("Clear", { title: "Erase all that is painted", onclick: events.clear });
    this.panel = element("div", "moss-brush", {}, "Brush", ...this.sizes, this.clear);
    picture.frame.addEventListener("pointerdown", (event) => this.#begin(event));
    picture.frame.addEventListener("keydown", (event) => this.#press(event));
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
    for (const type of ["pointerup", "pointercancel"]) { // on the window, since the node may be removed meanwhile
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
