/**
 * ComfyUI's entry: the inspector on MoSs Frequency Map and MoSs Token Dispatch, the text of MoSs Report and
 * MoSs Contribution Map.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chain } from "./chain.mjs";
import { repeat, translate } from "./failure.mjs";
import { onceAFrame } from "./frame.mjs";
import { DISPATCH, DRAFT, hidePaintingText, lastOutput, locator, MAP } from "./graph.mjs";
import { Inspector } from "./inspector.mjs";
import { nameChoices } from "./labels.mjs";
import { Report } from "./report.mjs";
import { Sheet } from "./sheet.mjs";
import { addStyle } from "./style.mjs";
import { addElement } from "./widget.mjs";
import { learn, say } from "./words.mjs";

const OURS = "MoSs_";
const FIRST_VIEW = { [MAP]: "heatmap", [DISPATCH]: "overlay" };
const SHOWING = {
  MoSs_Report: Report, MoSs_ContributionMap: Report, MoSs_Compare: Report, MoSs_PickDrafts: Sheet,
};
const FOLLOWED = { // widgets that the inspectors show, or that decide about what they show
  [DISPATCH]: ["preset", "values", "painting", "scales"],
  [DRAFT]: ["refine_scales", "method"],
  MoSs_PickDrafts: ["picks"],
};
const MARGIN = 10; // pixels that the host leaves around a DOM widget
const HEIGHT = 300; // of the inspector, the least, in pixels
const WIDTH = 300; // of its node, the least
const NEW_WIDTH = 330; // of a new node
const NEW_ROOM = 200; // more than the least height, so that a square picture is as wide as the node

const live = new Map(); // inspectors by node, of the nodes that are in a graph
const shown = new Map(); // reports and sheets by node, likewise
const removed = new Map(); // inspectors by place, of nodes that were removed just now

/** Bounds or painting may have changed: at the next frame, show them everywhere. */
const refreshAll = onceAFrame(() => {
  for (const inspector of live.values()) inspector.refresh();
  for (const each of shown.values()) each.refresh?.();
});

function showOutput(inspector, output) {
  const payload = output?.moss_inspector?.[0];
  if (payload) inspector?.show(payload);
}

/** Whether the host is putting an earlier graph of the same workflow back. */
const isUndoing = () => {
  const workflow = app.extensionManager?.workflow?.activeWorkflow;
  return Boolean(workflow?.changeTracker?._restoringState);
};

/**
 * Keep a node's inspector in `live` while the node is in a graph. Undo removes all nodes and makes new ones.
 */
function keepLive(node, inspector) {
  let place = null;
  chain(node, "onAdded", () => {
    place = `${node.comfyClass} ${locator(node)}`;
    if (removed.has(place) && isUndoing()) inspector.resume(removed.get(place));
    live.set(node, inspector);
    inspector.watch();
    refreshAll();
  });
  chain(node, "onRemoved", () => {
    live.delete(node);
    inspector.rest();
    removed.set(place, inspector);
    setTimeout(() => removed.delete(place));
  });
}

function attach(node) {
  const inspector = new Inspector(node, FIRST_VIEW[node.comfyClass]);
  const settings = { label: say("inspector.label"), height: HEIGHT + 2 * MARGIN, width: WIDTH };
  addElement(node, "moss_inspector", inspector.root, settings);
  keepLive(node, inspector);
  hidePaintingText(node);
  chain(node, "onExecuted", (output) => showOutput(inspector, output));
  chain(node, "onConnectionsChange", refreshAll);
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, NEW_WIDTH), height + NEW_ROOM]);
}

function attachShown(node) {
  const each = new SHOWING[node.comfyClass](node);
  chain(node, "onAdded", () => shown.set(node, each));
  chain(node, "onRemoved", () => shown.delete(node));
  chain(node, "onExecuted", (output) => each.show(output));
}

/** Keep the numbers within the event that changes what they are for, and show the rest at the next frame. */
function follow(node) {
  for (const widget of node.widgets ?? []) {
    if (!FOLLOWED[node.comfyClass].includes(widget.name)) continue;
    chain(widget, "callback", () => {
      for (const inspector of live.values()) inspector.keep();
      refreshAll();
    });
  }
}

/** What the nodes cannot follow, such as an area or a prompt weight. */
function showWarning({ detail: { key, values } }) {
  const detail = say(`note.${key}`, values);
  app.extensionManager?.toast?.add({ severity: "warn", summary: "MoSs", detail, life: 10000 });
}

function forgetFailure() {
  for (const each of [...live.values(), ...shown.values()]) each.fail("");
}

addStyle();

app.registerExtension({
  name: "MoSs.Inspector",
  async init() {
    await learn(api, app.extensionManager?.setting?.get("Comfy.Locale"));
    api.addEventListener("execution_error", ({ detail }) => translate(detail), { capture: true }); // the first
  },
  setup() {
    api.addEventListener("moss.warning", showWarning);
    api.addEventListener("execution_start", forgetFailure);
    api.addEventListener("execution_error", ({ detail }) => repeat(detail, new Map([...live, ...shown])));
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(OURS)) return;
    if (node.comfyClass in FIRST_VIEW) attach(node);
    else if (node.comfyClass in SHOWING) attachShown(node);
    if (node.comfyClass in FOLLOWED) follow(node);
    nameChoices(node);
  },
  loadedGraphNode(node) {
    const output = lastOutput(node);
    shown.get(node)?.show(output);
    if (!output) live.get(node)?.clear();
    else showOutput(live.get(node), output);
  },
  onNodeOutputsUpdated() {
    for (const [node, inspector] of live) showOutput(inspector, lastOutput(node));
  },
});
