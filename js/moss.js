/** ComfyUI's entry: the inspector on Frequency Map and Token Dispatch, the text of MoSs Report and Contribution Map. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { hidePaintingText, lastOutput, locator } from "./graph.mjs";
import { Inspector } from "./inspector.mjs";
import { attachReport } from "./report.mjs";
import { addStyle } from "./style.mjs";

const FIRST_VIEW = { MoSs_FrequencyMap: "heatmap", MoSs_TokenDispatch: "overlay" };
const REPORTING = ["MoSs_Report", "MoSs_ContributionMap"];
const FOLLOWED = ["preset", "values", "painting"]; // widgets that the inspector shows
const MARGIN = 10; // pixels that the host leaves around a DOM widget
const MIN_HEIGHT = 300; // of the inspector, in pixels
const NEW_WIDTH = 330; // of a new node
const NEW_ROOM = 200; // more than the least height, so that a square picture is as wide as the node

const live = new Map(); // inspectors by node, of the nodes that are in a graph
const reports = new WeakMap(); // what shows an output, by node
const resting = new Map(); // inspectors by place, of nodes that were removed just now

let refreshing = false;

/** Bounds or painting may have changed: at the next frame, show them everywhere. */
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

/**
 * Keep a node's inspector in `live` while the node is in a graph.
 *
 * Undo removes all nodes and makes new ones in their places. Each then takes over the inspector of the one before it, so that
 * it stays as it was; besides, a front-end may go on showing the old element.
 */
function keepLive(node, widget, own) {
  let inspector = own;
  let place = null;
  chain(node, "onAdded", () => {
    place = `${node.comfyClass} ${locator(node)}`;
    inspector = resting.get(place) ?? inspector;
    resting.delete(place);
    inspector.node = node;
    widget.element = inspector.root;
    live.set(node, inspector);
    inspector.watch();
    refreshAll();
  });
  chain(node, "onRemoved", () => {
    live.delete(node);
    inspector.rest();
    resting.set(place, inspector);
    setTimeout(() => resting.delete(place));
  });
}

function attach(node) {
  const inspector = new Inspector(node, FIRST_VIEW[node.comfyClass]);
  const widget = node.addDOMWidget("moss_inspector", "MOSS_INSPECTOR", inspector.root, {
    serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT + 2 * MARGIN, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  keepLive(node, widget, inspector);
  hidePaintingText(node);
  for (const each of node.widgets) {
    if (FOLLOWED.includes(each.name)) chain(each, "callback", refreshAll);
  }
  chain(node, "onExecuted", (output) => showOutput(live.get(node), output));
  chain(node, "onConnectionsChange", refreshAll);
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, NEW_WIDTH), height + NEW_ROOM]);
}

function attachText(node) {
  const show = attachReport(node);
  reports.set(node, show);
  chain(node, "onExecuted", show);
}

addStyle();

/** What the nodes cannot follow, such as an area or a prompt weight. */
function showWarning({ detail }) {
  app.extensionManager?.toast?.add({ severity: "warn", summary: "MoSs", detail: detail.text, life: 10000 });
}

app.registerExtension({
  name: "MoSs.Inspector",
  setup() {
    api.addEventListener("moss.warning", showWarning);
  },
  nodeCreated(node) {
    if (node.comfyClass in FIRST_VIEW) attach(node);
    else if (REPORTING.includes(node.comfyClass)) attachText(node);
  },
  loadedGraphNode(node) {
    const output = lastOutput(node);
    reports.get(node)?.(output);
    if (!output) live.get(node)?.clear();
    else if (live.has(node)) showOutput(live.get(node), output);
  },
  onNodeOutputsUpdated() {
    for (const [node, inspector] of live) showOutput(inspector, lastOutput(node));
  },
});
