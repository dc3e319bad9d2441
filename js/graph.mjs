/** The host's graph: where the bounds are kept, how they are read and written, what a node was last sent. */

import { app } from "../../scripts/app.js";
import { allNodes, isActive, isLinked, originOf } from "./origin.mjs";
import { CUSTOM_BOUNDS, formatNumbers, readPass } from "./pass.mjs";

export const MAP = "MoSs_FrequencyMap";
export const DISPATCH = "MoSs_TokenDispatch";
export const DRAFT = "MoSs_InfinityDraft";

/**
 * The Token Dispatch node whose pass a node shows: itself, or the first that takes its map, by whatever way.
 * @returns {object | null}
 */
export function dispatchOf(node) {
  if (node.comfyClass === DISPATCH) return node;
  const dispatches = allNodes(node).filter((other) => other.comfyClass === DISPATCH && isActive(other));
  return dispatches.find((other) => originOf(other, "frequency").node === node) ?? null;
}

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** A text that a node will run with; undefined where only the run can tell. */
export function readText(node, name) {
  const { value } = originOf(node, name);
  return value === undefined ? undefined : String(value ?? "");
}

/**
 * @typedef {object} Said by the widgets of a MoSs Token Dispatch node
 * @property {{preset: string, values: string, scales: string} | null} pass null: only the run can tell
 * @property {boolean} own whether the numbers are set on the node itself, and can be written there
 * @property {string | undefined} painting as text; undefined: only the run can tell
 * @property {boolean} masked whether a mask is connected: what is in it, only the server knows
 * @property {number | null} k scales that the draft will leave; null: not to be seen from here
 */

/**
 * @param {object} dispatch a MoSs Token Dispatch node
 * @returns {Said}
 */
export function readDispatch(dispatch) {
  const [preset, values] = ["preset", "values"].map((name) => readText(dispatch, name));
  const scales = widgetOf(dispatch, "scales") ? readText(dispatch, "scales") : "all";
  const known = [preset, values, scales].every((text) => text !== undefined);
  return {
    pass: known ? { preset, values, scales } : null,
    own: !isLinked(dispatch, "preset") && !isLinked(dispatch, "values"),
    painting: readText(dispatch, "painting"),
    masked: Boolean(originOf(dispatch, "mask").node),
    k: refineScales(dispatch),
  };
}

/** Scales that the draft in front of a MoSs Token Dispatch node will leave, where a number on it says so. */
function refineScales(dispatch) {
  const map = originOf(dispatch, "frequency").node;
  const draft = map && originOf(map, "draft").node;
  if (draft?.comfyClass !== DRAFT) return null;
  const method = originOf(draft, "method").value;
  const { value } = originOf(draft, "refine_scales");
  return (method === undefined || method === "custom") && Number.isInteger(value) ? value : null;
}

function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget || isLinked(node, name)) return;
  const old = widget.value;
  if (old === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node, app.canvas?.graph_mouse);
  node.onWidgetChanged?.(name, value, old, widget);
  node.setDirtyCanvas?.(true);
}

/** Write a text to a widget of a node, unless something is connected to it. */
export const writeText = setWidget;

/** Let a connected `values` widget, which some front-ends go on showing, hold what came that way. */
export function holdValues(dispatch, text) {
  const widget = widgetOf(dispatch, "values");
  if (!widget || !isLinked(dispatch, "values") || widget.value === text) return;
  widget.value = text;
  dispatch.setDirtyCanvas?.(true);
}

/**
 * Grey out the numbers of a Token Dispatch node while its preset does not take them; they can still be read.
 */
export function greyValues(dispatch, grey) {
  const widget = widgetOf(dispatch, "values");
  if (!widget || Boolean(widget.disabled) === grey) return;
  widget.disabled = grey;
  // the classic renderer would leave a disabled widget empty
  Object.defineProperty(widget, "_displayValue", { get: () => String(widget.value), configurable: true });
  dispatch.setDirtyCanvas?.(true);
}

/**
 * Write a pass to a MoSs Token Dispatch node's widgets.
 * @param {object} dispatch
 * @param {import("./pass.mjs").Pass} pass
 * @param {import("./pass.mjs").Choices} choices of the draft
 */
export function writePass(dispatch, { scales, bounds }, choices) {
  const named = readText(dispatch, "scales") ?? "all";
  const widgets = { preset: CUSTOM_BOUNDS, values: formatNumbers(bounds), scales: named };
  const meant = readPass(widgets, choices).scales ?? [];
  setWidget(dispatch, "preset", widgets.preset); // first, since other presets have numbers of their own
  if (String(meant) !== String(scales)) setWidget(dispatch, "scales", scales.join(", "));
  setWidget(dispatch, "values", widgets.values);
}

/** Go back to the first preset: the bounds for the model. */
export function resetPass(dispatch) {
  setWidget(dispatch, "preset", widgetOf(dispatch, "preset").options.values[0]);
}

/** What is painted on a node, as text. */
export const paintingText = (node) => String(widgetOf(node, "painting")?.value ?? "");

/** Whether cells can be painted on a node. */
export function isPaintable(node) {
  return Boolean(widgetOf(node, "painting")) && !isLinked(node, "painting");
}

/** Keep what is painted in a MoSs Token Dispatch node. */
export function writePaintingText(dispatch, text) {
  setWidget(dispatch, "painting", text);
}

/** Hide the widget with the painting's text, which says nothing to a reader; it is still saved and sent. */
export function hidePaintingText(node) {
  const widget = widgetOf(node, "painting");
  if (!widget) return;
  widget.hidden = true; // for the classic renderer
  widget.options.hidden = true; // for the other one
}

/** Open and close a step of the undo history; what happens in between is undone at once. */
export const beginChange = () => app.canvas?.emitBeforeChange?.();
export const endChange = () => app.canvas?.emitAfterChange?.();

/** A node's place as the host names it: its id, in a subgraph with the subgraph's id before it. */
export function locator(node) {
  const { graph } = node;
  return graph && graph !== (graph.rootGraph ?? graph) ? `${graph.id}:${node.id}` : String(node.id);
}

/** What the host was last sent for a node; it survives undo and changing tabs. */
export function lastOutput(node) {
  return app.nodeOutputs?.[locator(node)];
}
