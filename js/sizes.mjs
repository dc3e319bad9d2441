/** How large elements are shown, as their observer tells it: to read it would make the page lay itself out. */

const NONE = [0, 0];

export class Sizes {
  /**
   * @param {() => void} changed one of them has another size
   * @param {...Element} elements
   */
  constructor(changed, ...elements) {
    this.elements = elements;
    this.found = new Map();
    this.observer = new ResizeObserver((entries) => {
      for (const { target, contentRect } of entries) {
        this.found.set(target, [contentRect.width, contentRect.height]);
      }
      changed();
    });
  }

  /** Follow the elements; call again after `rest`. */
  watch() {
    for (const each of this.elements) this.observer.observe(each);
  }

  /** Stop following, when the node is removed. */
  rest() {
    this.observer.disconnect();
  }

  /** @returns {[number, number]} width and height in pixels of the page; 0 while it is not shown */
  of(element) {
    return this.found.get(element) ?? NONE;
  }
}
