/**
 * The draggable handles above the histogram, one a bound: labels with the percentage.
 *
 * Labels keep a distance from each other, so that each can be taken also where bounds lie close together.
 */

import { onceAFrame } from "./frame.mjs";
import { say } from "./words.mjs";

const LABEL = 36; // least distance of two labels, pixels
const COARSE = 1; // percent a step
const FINE = 0.1; // with Shift
// left is calmer: a higher percentage
const KEYS = { ArrowLeft: 1, ArrowUp: 1, ArrowRight: -1, ArrowDown: -1 };

/**
 * Centres of labels as near as possible to their places, in the same order and within the width.
 * @param {number[]} places pixels, ascending
 * @param {number} width pixels
 * @returns {number[]} pixels
 */
export function spread(places, width) {
  const gap = Math.min(LABEL, width / places.length);
  const centres = places.map((place) => Math.min(width - gap / 2, Math.max(gap / 2, place)));
  for (let i = 1; i < centres.length; i += 1) centres[i] = Math.max(centres[i], centres[i - 1] + gap);
  for (let i = centres.length - 1, right = width - gap / 2; i >= 0; i -= 1, right -= gap) {
    centres[i] = Math.min(centres[i], right);
    right = centres[i];
  }
  return centres;
}

export class Handles {
  /**
   * @param {HTMLElement} box positioned element above the histogram, as wide as it
   * @param {object} events
   * @param {() => void} events.start a change begins
   * @param {(index: number, move: {place?: number, by?: number}, step: number) => void} events.move to a
   *     place on the
   *     axis, or by so many percent
   * @param {() => void} events.end a change is complete
   */
  constructor(box, events) {
    this.box = box;
    this.events = events;
    this.places = [];
    this.looks = []; // of the handles, so that only what changes is written
  }

  /**
   * @param {{percent: number, place: number, colour: string, name: string}[]} bounds coarsest first
   * @param {boolean} editable false: labels that cannot be moved
   * @param {number} width of the box in pixels
   * @returns {number[]} where the labels are, on the axis from 0 to 1
   */
  show(bounds, editable, width) {
    this.places = bounds.map(({ place }) => place);
    while (this.box.children.length > bounds.length) this.box.lastChild.remove();
    while (this.box.children.length < bounds.length) this.box.append(this.#create(this.box.children.length));
    const centres = spread(this.places.map((place) => place * width), width);
    bounds.forEach((bound, i) => {
      const limits = [bounds[i + 1]?.percent ?? 0, bounds[i - 1]?.percent ?? 100];
      const look = JSON.stringify([bound, limits, centres[i], editable]);
      if (this.looks[i] !== look) this.#write(this.box.children[i], bound, limits, centres[i], editable);
      this.looks[i] = look;
    });
    this.looks.length = bounds.length;
    return centres.map((centre) => centre / width);
  }

  #write(handle, { percent, colour, name }, [least, most], centre, editable) {
    handle.style.left = `${centre}px`;
    handle.style.setProperty("--moss-colour", colour);
    handle.disabled = !editable;
    handle.textContent = `${Number(percent.toFixed(1))} %`;
    const limits = { valuemin: least, valuemax: most, valuenow: percent };
    for (const [key, value] of Object.entries(limits)) handle.setAttribute(`aria-${key}`, value);
    handle.setAttribute("aria-label", say("bound.label", { name }));
    handle.setAttribute("aria-valuetext", say("bound.value", { percent: Number(percent.toFixed(1)) }));
    handle.title = say(editable ? "bound.drag" : "bound.locked");
  }

  #create(index) {
    const handle = document.createElement("button");
    handle.type = "button";
    handle.className = "moss-handle";
    handle.setAttribute("role", "slider");
    handle.addEventListener("pointerdown", (event) => this.grab(index, event));
    handle.addEventListener("keydown", (event) => this.#press(index, event));
    return handle;
  }

  /**
   * The handle whose line is nearest to a place; of lines on one spot the one that can follow the pointer.
   */
  nearest(place) {
    const distances = this.places.map((line) => Math.abs(line - place));
    const near = distances.flatMap((distance, i) => (distance <= Math.min(...distances) + 1e-9 ? [i] : []));
    return place > this.places[near[0]] ? near.at(-1) : near[0];
  }

  /** Let a handle follow the pointer, once a frame, until it is released. */
  grab(index, event) {
    const handle = this.box.children[index];
    if (event.button !== 0 || handle.disabled) return;
    const area = this.box.getBoundingClientRect();
    const offset = event.clientX - area.left - this.places[index] * area.width;
    let last = null; // where the pointer is, and the handle is not yet
    const move = () => {
      if (!last) return;
      const place = (last.clientX - offset - area.left) / area.width;
      this.events.move(index, { place }, last.shiftKey ? FINE : COARSE);
      last = null;
    };
    const moveSoon = onceAFrame(move);
    const follow = (event) => {
      last = event;
      moveSoon();
    };
    const grip = new AbortController();
    const release = () => {
      grip.abort();
      move();
      this.events.end();
    };
    handle.focus({ preventScroll: true });
    handle.setPointerCapture(event.pointerId);
    handle.addEventListener("pointermove", follow, { signal: grip.signal });
    // on the window, since a new run may remove the handle meanwhile
    for (const type of ["pointerup", "pointercancel"]) {
      window.addEventListener(type, release, { capture: true, signal: grip.signal });
    }
    this.events.start();
    event.stopPropagation();
  }

  #press(index, event) {
    const by = KEYS[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const step = event.shiftKey ? FINE : COARSE;
    this.events.start();
    this.events.move(index, { by: by * step }, step);
    this.events.end();
  }
}
