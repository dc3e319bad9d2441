/** Text that a node reports when it has run: shown on the node, to read and to copy. */

import { element } from "./dom.mjs";

const EMPTY = "Run the graph to see the report.";
const MIN_HEIGHT = 60; // pixels
const NEW_SIZE = [330, 300]; // of a new node, the least

/**
 * Show `ui.text` of an executed node on it.
 * @param {object} node of the host
 * @returns {(output: object) => void} to be told every output of the node
 */
export function attachReport(node) {
  const text = element("pre", "moss-report", { textContent: EMPTY, tabIndex: 0 });
  const widget = node.addDOMWidget("moss_report", "MOSS_REPORT", text, {
    serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, NEW_SIZE[0]), Math.max(height, NEW_SIZE[1])]);
  return (output) => {
    if (output?.text) text.textContent = [output.text].flat().join("\n");
  };
}
