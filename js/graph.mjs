/** The host's graph: where the bounds are kept, how they are read and written, what a node was last sent. */

import { app } from "../../scripts/app.js";
import { formatBounds, resolveBounds } from "./dispatch.mjs";

const DISPATCH = "MoSs_TokenDispatch";

/**
 * The Token Dispatch node whose bounds a node shows: itself, or the first that is connected to its first output.
 * @returns {object | null}
 */
export function dispatchOf(node) {
  if (node.comfyClass === DISPATCH) return node;
  for (const next of node.getOutputNodes?.(0) ?? []) {
    const found = next.comfyClass === DISPATCH ? next : next.type === "Reroute" ? dispatchOf(next) : null;
    if (found) return found;
  }
  return null;
}

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

function isLinked(node, name) {
  const input = node.inputs?.findIndex((slot) => slot.widget?.name === name) ?? -1;
  return input >= 0 && node.isInputConnected(input);
}

/**
 * Whether the bounds are set on the node itself, and not through an input that is connected.
 * @param {object} dispatch a Token Dispatch node
 */
export function isEditable(dispatch) {
  return !isLinked(dispatch, "preset") && !isLinked(dispatch, "values");
}

/**
 * The bounds that a Token Dispatch node's widgets mean.
 * @param {object} dispatch
 * @param {number} k number of refine scales
 * @param {Object<string, number[] | null>} known see resolveBounds
 * @returns {{bounds: number[]} | {problem: string}}
 */
export function readBounds(dispatch, k, known) {
  return resolveBounds(widgetOf(dispatch, "preset").value, widgetOf(dispatch, "values").value, k, known);
}

function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  const old = widget.value;
  if (old === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node, app.canvas?.graph_mouse);
  node.onWidgetChanged?.(name, value, old, widget);
}

/**
 * @param {object} dispatch a Token Dispatch node
 * @returns {string} what is painted on it, as text
 */
export function paintingText(dispatch) {
  return isLinked(dispatch, "painting") ? "" : String(widgetOf(dispatch, "painting")?.value ?? "");
}

/** Whether a mask is connected, or a painting through an input: what is in it, only the server knows. */
export function isMasked(dispatch) {
  const input = dispatch.inputs?.findIndex(({ name }) => name === "mask") ?? -1;
  return (input >= 0 && dispatch.isInputConnected(input)) || isLinked(dispatch, "painting");
}

/** Whether cells can be painted on a node. */
export function isPaintable(node) {
  return Boolean(widgetOf(node, "painting")) && !isLinked(node, "painting");
}

/** Keep what is painted in a Token Dispatch node. */
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

/** Write bounds to a Token Dispatch node's widgets. */
export function writeBounds(dispatch, bounds) {
  setWidget(dispatch, "values", formatBounds(bounds));
  setWidget(dispatch, "preset", "custom bounds");
  dispatch.setDirtyCanvas?.(true, true);
}

/** Go back to the bounds for the model. */
export function resetBounds(dispatch) {
  setWidget(dispatch, "preset", "automatic");
  dispatch.setDirtyCanvas?.(true, true);
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
