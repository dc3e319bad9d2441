/**
 * What belongs to the host's canvas although it happens over the inspector: zooming with the wheel, moving
 * with the middle button.
 */

import { app } from "../../scripts/app.js";

const MIDDLE = 1;
const MIDDLE_HELD = 4;

/**
 * Hand these events on. The classic renderer puts widgets above its canvas, which then does not see them; the
 * other
 * renderer takes them before they come here.
 * @param {HTMLElement} root of the inspector
 */
export function forwardToCanvas(root) {
  const forward = (type, method, wanted) =>
    root.addEventListener(type, (event) => {
      if (wanted(event)) app.canvas?.[method]?.(event);
    });
  forward("wheel", "processMouseWheel", () => true);
  forward("pointerdown", "processMouseDown", ({ button }) => button === MIDDLE);
  forward("pointermove", "processMouseMove", ({ buttons }) => Boolean(buttons & MIDDLE_HELD));
  forward("pointerup", "processMouseUp", ({ button }) => button === MIDDLE);
}
