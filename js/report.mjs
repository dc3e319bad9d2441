/** Text that a node reports when it has run: shown on the node, to read and to copy. */

import { element } from "./dom.mjs";
import { addElement } from "./widget.mjs";
import { say, table, translated } from "./words.mjs";

const HEIGHT = 60; // pixels, the least
const WIDTH = 240; // of the node, the least
const NEW_SIZE = [330, 300]; // of a new node, the least

/** Rows of a name and a value, the values below each other. */
function lines(rows) {
  const named = rows.map(([key, name, value]) => [table("report")[key] ?? name, translated(value)]);
  return element("dl", "moss-rows", {}, ...named.flatMap(([name, value]) => [
    element("dt", "", { textContent: name }), element("dd", "", { textContent: value }),
  ]));
}

export class Report {
  /** @param {object} node of the host, on which it is shown */
  constructor(node) {
    this.root = element("div", "moss-report", { tabIndex: 0, textContent: say("report.empty") });
    addElement(node, "moss_report", this.root, { label: say("report.label"), height: HEIGHT, width: WIDTH });
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, NEW_SIZE[0]), Math.max(height, NEW_SIZE[1])]);
  }

  /**
   * @param {object | undefined} output of the node: rows of `moss_report` where there are some, else its text
   */
  show(output) {
    if (output?.moss_report) this.root.replaceChildren(lines(output.moss_report));
    else if (output?.text) this.root.textContent = [output.text].flat().map(translated).join("\n");
  }

  /**
   * Repeat why the last run stopped.
   * @param {string} sentence "" = it did not
   */
  fail(sentence) {
    if (sentence) this.root.textContent = sentence;
  }
}
