/** The bounds on a histogram of the frequencies: how the tokens are shared out, and handles to change it. */

import { DRAFTED, element, fitCanvas, gridName } from "./dom.mjs";
import { moveBound } from "./dispatch.mjs";
import { Handles } from "./handles.mjs";
import { bars, frequencyAxis, paintBars, paintBounds, percentOfPlace, placeOfPercent } from "./histogram.mjs";

const LEAD = 6; // pixels between the labels and the bars
const REACH = 10; // pixels around a line in which it can be taken

export class BoundsEditor {
  /**
   * @param {object} events
   * @param {() => void} events.start a change begins
   * @param {(bounds: number[]) => void} events.change
   * @param {() => void} events.end the change is complete
   */
  constructor({ start, change, end }) {
    this.change = change;
    this.labels = element("div", "moss-handles");
    this.handles = new Handles(this.labels, { start, end, move: (...move) => this.#move(...move) });
    this.canvas = element("canvas", "");
    this.least = element("span", "");
    this.most = element("span", "");
    const axis = element("div", "moss-axis moss-quiet", {}, this.least, "frequency", this.most);
    this.element = element("div", "moss-histogram", {}, this.labels, this.canvas, axis);
    this.canvas.addEventListener("pointerdown", (event) => this.#take(event));
  }

  /**
   * @param {import("./decode.mjs").Inspection} inspection
   * @param {import("./decode.mjs").Picture} picture of the batch
   */
  show(inspection, picture) {
    Object.assign(this, { inspection, picture, axis: frequencyAxis(picture.frequency) });
    const { sorted, faint } = this.axis;
    const short = (frequency) => String(Number(frequency.toPrecision(2)));
    this.least.textContent = faint && faint < sorted.length ? `calm < ${short(sorted[faint])}` : `calm ${short(sorted[0])}`;
    this.most.textContent = `${short(sorted.at(-1))} busy`;
  }

  /**
   * @param {import("./reading.mjs").State} state
   * @param {boolean} editable whether the bounds can be moved
   */
  paint({ bounds, ranks }, editable) {
    this.bounds = bounds;
    this.element.classList.toggle("moss-movable", editable);
    const places = bounds.map((percent) => placeOfPercent(this.axis, percent));
    const labels = this.handles.show(this.#describe(places), editable);
    const scale = fitCanvas(this.canvas);
    if (!scale) return;
    const { colours } = this.inspection;
    paintBars(this.canvas, bars(this.axis, this.picture.frequency, ranks.at(-1), bounds), [...colours, DRAFTED], LEAD * scale);
    paintBounds(this.canvas, places, labels, getComputedStyle(this.element).color, 1.5 * scale, LEAD * scale);
  }

  #describe(places) {
    const { colours, grids } = this.inspection;
    return places.map((place, i) => ({ place, percent: this.bounds[i], colour: colours[i], name: gridName(grids[i]) }));
  }

  #move(index, { place, by }, step) {
    const percent = place === undefined ? this.bounds[index] + by : percentOfPlace(this.axis, place);
    const moved = moveBound(this.bounds, index, percent, step);
    if (moved[index] === this.bounds[index]) return;
    this.bounds = moved;
    this.change(moved);
  }

  #take(event) {
    const area = this.canvas.getBoundingClientRect();
    const place = (event.clientX - area.left) / area.width;
    const index = this.handles.nearest(place);
    if (index !== undefined && Math.abs(this.handles.places[index] - place) * area.width <= REACH) this.handles.grab(index, event);
  }
}
