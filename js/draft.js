/**
 * MoSs Draft says what it will use before it runs (pixels, guidance, temperature), and warns of what its
 * model
 * never learned. Workflows that were saved before it had a method keep the one that their numbers stand for.
 */

import { app } from "../../scripts/app.js";
import { chain } from "./chain.mjs";
import { element } from "./dom.mjs";
import { onceAFrame } from "./frame.mjs";
import { DRAFT, lastOutput } from "./graph.mjs";
import { describe, expected } from "./used.mjs";
import { addElement } from "./widget.mjs";
import { say } from "./words.mjs";

const CUSTOM = "custom";
const ONLY_FOR = { refine_scales: CUSTOM, budget: "by budget", seconds: "by seconds" }; // widget -> its method
const HIDDEN = ["budget", "seconds"];
const FOLLOWED = ["aspect", "area", "cfg", "tau", "method", ...Object.keys(ONLY_FOR)];
const LOADERS = ["MoSs_LoadInfinity", "MoSs_LoadHART"];
const SIZE = { height: 48, width: 300 };

const live = new Map(); // what shows the line of a node, by node
const refreshAll = onceAFrame(() => {
  for (const refresh of live.values()) refresh();
});

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
const valueOf = (node, name) => widgetOf(node, name)?.value;

/** What the server told about models and sizes, beside the area. */
const facts = () => LiteGraph.registered_node_types[DRAFT]?.nodeData?.input?.required?.area?.[1]?.moss;

function modelOf(node) {
  const loader = node.getInputNode?.(0);
  return LOADERS.includes(loader?.comfyClass) ? valueOf(loader, "model") : null;
}

/** A number is not used where the method is not its own: greyed out, or, of a budget, not shown. */
function followMethod(node) {
  for (const [name, method] of Object.entries(ONLY_FOR)) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    widget.disabled = valueOf(node, "method") !== method;
    widget.options.disabled = widget.disabled;
    if (HIDDEN.includes(name)) widget.hidden = widget.options.hidden = widget.disabled;
  }
}

function keepOldMethod(node, saved) {
  const place = node.widgets.findIndex(({ name }) => name === "method");
  if (Array.isArray(saved) && saved.length <= place) node.widgets[place].value = CUSTOM;
}

function attach(node) {
  const line = element("div", "moss-used");
  let output = null;
  const refresh = () => {
    followMethod(node);
    const settings = Object.fromEntries(FOLLOWED.map((name) => [name, valueOf(node, name)]));
    const { text, notes } = describe(expected(settings, modelOf(node), facts()), output, say);
    line.replaceChildren(text, ...notes.map((note) => element("div", "moss-note", { textContent: note })));
  };
  addElement(node, "moss_used", line, { ...SIZE, label: say("used.label") });
  chain(node, "onAdded", () => live.set(node, refresh));
  chain(node, "onRemoved", () => live.delete(node));
  for (const widget of node.widgets.filter(({ name }) => FOLLOWED.includes(name))) {
    chain(widget, "callback", () => {
      output = null;
      refreshAll();
    });
  }
  chain(node, "onConnectionsChange", refreshAll);
  chain(node, "onExecuted", (said) => {
    output = said;
    refreshAll();
  });
  chain(node, "onConfigure", ({ widgets_values: saved }) => {
    keepOldMethod(node, saved);
    output = lastOutput(node) ?? null;
    refreshAll();
  });
  refresh();
}

app.registerExtension({
  name: "MoSs.Draft",
  nodeCreated(node) {
    if (node.comfyClass === DRAFT) attach(node);
    const model = LOADERS.includes(node.comfyClass) && widgetOf(node, "model");
    if (model) chain(model, "callback", refreshAll);
  },
});
