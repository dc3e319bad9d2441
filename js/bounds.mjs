/** The bounds on a histogram of the frequencies: how the tokens are shared out, and handles to change it. */

import { element, fitCanvas, gridName } from "./dom.mjs";
import { moveBound } from "./dispatch.mjs";
import { Handles } from "./handles.mjs";
import { bars, frequencyAxis, paintBars, paintBounds, percentOfPlace, placeOfPercent } from "./histogram.mjs";
import { say } from "./words.mjs";

const LEAD = 6; // pixels between the labels and the bars
const REACH = 10; // pixels around a line in which it can be taken

export class BoundsEditor {
  /**
   * @param {object} events
   * @param {() => void} events.start a change begins
   * @param {(pass: import("./pass.mjs").Pass) => void} events.change
   * @param {() => void} events.end the change is complete
   */
  constructor({ start, change, end }) {
    this.change = change;
    this.labels = element("div", "moss-handles");
    this.handles = new Handles(this.labels, { start, end, move: (...move) => this.#move(...move) });
    this.canvas = element("canvas", "");
    this.least = element("span", "");
    this.most = element("span", "");
    const axis = element("div", "moss-axis moss-quiet", {}, this.least, say("axis.frequency"), this.most);
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
    const least = faint && faint < sorted.length ? `< ${short(sorted[faint])}` : short(sorted[0]);
    this.least.textContent = say("axis.calm", { least });
    this.most.textContent = say("axis.busy", { most: short(sorted.at(-1)) });
  }

  /**
   * @param {import("./state.mjs").State} state
   * @param {string} ink colour of the lines
   * @param {[number, number]} size that the canvas is shown at
   */
  paint(state, ink, size) {
    this.state = state;
    const { bounds, editable, colours } = state;
    this.element.classList.toggle("moss-movable", editable);
    const places = bounds.map((percent) => placeOfPercent(this.axis, percent));
    const scale = fitCanvas(this.canvas, size);
    if (!scale) return;
    const labels = this.handles.show(this.#describe(places), editable, size[0]);
    const { final, drafted } = this.inspection;
    const found = bars(this.axis, this.picture.frequency, final, state);
    paintBars(this.canvas, found, [...colours, drafted], LEAD * scale);
    paintBounds(this.canvas, places, labels, ink, 1.5 * scale, LEAD * scale);
  }

  #describe(places) {
    const { bounds, colours, grids } = this.state;
    return places.map((place, i) => (
      { place, percent: bounds[i], colour: colours[i], name: gridName(grids[i]) }
    ));
  }

  #move(index, { place, by }, step) {
    const { bounds, scales } = this.state;
    const percent = place === undefined ? bounds[index] + by : percentOfPlace(this.axis, place);
    const moved = moveBound(bounds, index, percent, step);
    if (moved[index] === bounds[index]) return;
    this.state = { ...this.state, bounds: moved };
    this.change({ scales, bounds: moved });
  }

  #take(event) {
    const area = this.canvas.getBoundingClientRect();
    const place = (event.clientX - area.left) / area.width;
    const index = this.handles.nearest(place);
    if (index === undefined || Math.abs(this.handles.places[index] - place) * area.width > REACH) return;
    this.handles.grab(index, event);
  }
}
