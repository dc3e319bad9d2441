/** ComfyUI's entry: the inspector on Frequency Map and Token Dispatch. */

import { app } from "../../scripts/app.js";
import { lastOutput } from "./graph.mjs";
import { Inspector } from "./inspector.mjs";
import { addStyle } from "./style.mjs";

const FIRST_VIEW = { MoSs_FrequencyMap: "heatmap", MoSs_TokenDispatch: "overlay" };
const MARGIN = 10; // pixels that the host leaves around a DOM widget
const MIN_HEIGHT = 300; // of the inspector, in pixels
const NEW_WIDTH = 330; // of a new node
const NEW_ROOM = 200; // more than the least height, so that a square picture is as wide as the node

const live = new Map(); // inspectors by node, of the nodes that are in a graph

let refreshing = false;

/** Bounds may have changed: at the next frame, show them everywhere. */
function refreshAll() {
  if (refreshing) return;
  refreshing = true;
  requestAnimationFrame(() => {
    refreshing = false;
    for (const inspector of live.values()) inspector.refresh();
  });
}

function chain(object, method, after) {
  const before = object[method];
  object[method] = function (...values) {
    const result = before?.apply(this, values);
    after(...values);
    return result;
  };
}

function showOutput(inspector, output) {
  const payload = output?.moss_inspector?.[0];
  if (payload) inspector.show(payload);
}

function attach(node) {
  const inspector = new Inspector(node, FIRST_VIEW[node.comfyClass]);
  const widget = node.addDOMWidget("moss_inspector", "MOSS_INSPECTOR", inspector.root, {
    serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT + 2 * MARGIN, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  for (const each of node.widgets) {
    if (each.name === "preset" || each.name === "values") chain(each, "callback", refreshAll);
  }
  chain(node, "onExecuted", (output) => showOutput(inspector, output));
  chain(node, "onConnectionsChange", refreshAll);
  chain(node, "onAdded", () => {
    live.set(node, inspector);
    inspector.watch();
  });
  chain(node, "onRemoved", () => {
    live.delete(node);
    inspector.rest();
  });
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, NEW_WIDTH), height + NEW_ROOM]);
}

addStyle();

app.registerExtension({
  name: "MoSs.Inspector",
  nodeCreated(node) {
    if (node.comfyClass in FIRST_VIEW) attach(node);
  },
  loadedGraphNode(node) {
    const inspector = live.get(node);
    if (inspector) showOutput(inspector, lastOutput(node));
  },
  onNodeOutputsUpdated() {
    for (const [node, inspector] of live) showOutput(inspector, lastOutput(node));
  },
});
