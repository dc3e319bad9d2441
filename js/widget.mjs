/** An element that the pack shows on a node. */

import { chain } from "./chain.mjs";
import { element } from "./dom.mjs";
import { locator } from "./graph.mjs";
import { keepKeys } from "./keys.mjs";

const free = new Map(); // shells by place, of nodes that were removed just now

/**
 * @param {object} node of the host
 * @param {string} name of the widget
 * @param {HTMLElement} content
 * @param {object} settings
 * @param {string} settings.label what the host's panel calls it
 * @param {number} settings.height the least, in pixels
 * @param {number} settings.width the least of the node, in pixels
 * @returns {object} the widget; nothing of it is saved or sent
 */
export function addElement(node, name, content, { label, height, width }) {
  const shell = element("div", "moss-shell", {}, content);
  const widget = node.addDOMWidget(name, name.toUpperCase(), shell, {
    serialize: false, hideOnZoom: false, getMinHeight: () => height, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  widget.label = label;
  // the host's panel writes the width that it would give a widget; on the node it is the node's
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {} });
  widen(node, width);
  keepKeys(content);
  keepShell(node, widget, content);
  return widget;
}

/**
 * Undo, and others, remove nodes and make new ones in their places at once. A front-end may then go on
 * showing the
 * old element; so the new content moves into it.
 */
function keepShell(node, widget, content) {
  let place = null;
  chain(node, "onAdded", () => {
    place = `${node.comfyClass} ${locator(node)} ${widget.name}`;
    const shell = free.get(place) ?? widget.element;
    free.delete(place);
    shell.replaceChildren(content);
    widget.element = shell;
  });
  chain(node, "onRemoved", () => {
    free.set(place, widget.element);
    setTimeout(() => free.delete(place));
  });
}

function widen(node, width) {
  const { computeSize } = node;
  node.computeSize = function (...values) {
    const size = computeSize.apply(this, values);
    size[0] = Math.max(size[0], width);
    return size;
  };
}
