/**
 * Where the value of an input comes from, through reroutes, Set and Get nodes, bypassed nodes and subgraphs,
 * as the
 * host resolves it when it sends the graph.
 */

const NEVER = 2; // mode of a muted node
const BYPASS = 4;
const LONGEST = 99; // steps, so that a loop of virtual nodes ends
const UNKNOWN = Object.freeze({});

/**
 * @typedef {object} Origin
 * @property {object} [node] the node that computes it, and
 * @property {number} [slot] at which output; or
 * @property {*} [value] the constant that it is; neither: nothing comes, or it cannot be told from the graph
 */

/** Whether a node takes part in a run. */
export const isActive = ({ mode }) => mode !== NEVER && mode !== BYPASS;

/** All nodes of the graph that a node is in, also in subgraphs. */
export function allNodes({ graph }) {
  const root = graph?.rootGraph ?? graph;
  return root ? [root, ...(root.subgraphs?.values() ?? [])].flatMap(({ nodes }) => nodes) : [];
}

/**
 * @param {object} node of the host
 * @param {string} name of an input
 * @returns {Origin}
 */
export function originOf(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  if (slot >= 0) return ofInput(node, slot, 0);
  return ofWidget(node.widgets?.find((widget) => widget.name === name));
}

/** Whether something is connected to an input, wherever it leads. */
export function isLinked(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot >= 0 && node.isInputConnected(slot);
}

const ofWidget = (widget) => (widget ? { value: widget.value } : UNKNOWN);

function ofInput(node, slot, steps) {
  const link = linkInto(node, slot);
  if (link) return ofLink(node.graph, link, steps + 1);
  const input = node.inputs[slot];
  const named = () => node.widgets?.find(({ name }) => name === input.name);
  return ofWidget(node.getWidgetFromSlot?.(input) ?? named());
}

/** The node of a subgraph answers for one of its outputs when it is asked for the link of an input. */
function linkInto(node, slot) {
  return node.isSubgraphNode?.() ? node.graph.getLink(node.inputs[slot].link) : node.getInputLink(slot);
}

function ofLink(graph, link, steps) {
  const source = graph.getNodeById(link.origin_id);
  if (source) return ofOutput(source, link.origin_slot, steps);
  return graph.inputNode && String(graph.inputNode.id) === String(link.origin_id)
    ? outside(graph, link.origin_slot, steps)
    : UNKNOWN;
}

function ofOutput(source, slot, steps) {
  if (steps > LONGEST || source.mode === NEVER) return UNKNOWN;
  if (source.mode === BYPASS) return through(source, slot, steps);
  if (source.isSubgraphNode?.()) return inside(source, slot, steps);
  return source.isVirtualNode ? ofVirtual(source, slot, steps) : { node: source, slot };
}

/** A bypassed node hands on the input of the same kind. */
function through(source, slot, steps) {
  const kind = source.outputs[slot].type;
  const fits = ({ type }) => LiteGraph.isValidConnection(type, kind);
  const input = source.inputs[slot] && fits(source.inputs[slot]) ? slot : source.inputs.findIndex(fits);
  return input < 0 ? UNKNOWN : ofInput(source, input, steps);
}

/** An output of a subgraph is an output of a node in it. */
function inside(source, slot, steps) {
  const link = source.subgraph.outputs[slot]?.getLinks()[0];
  return link ? ofLink(source.subgraph, link, steps + 1) : UNKNOWN;
}

/** An input of a subgraph is one of the node that stands for it; of several nodes, who knows which. */
function outside(graph, slot, steps) {
  const holders = allNodes({ graph }).filter((node) => node.isSubgraphNode?.() && node.subgraph === graph);
  return holders.length === 1 ? ofInput(holders[0], slot, steps) : UNKNOWN;
}

function ofVirtual(source, slot, steps) {
  if (source.type === "PrimitiveNode") return ofWidget(source.widgets?.[0]);
  const away = source.resolveVirtualOutput?.(slot);
  if (away) return ofOutput(away.node, away.slot, steps + 1);
  const link = source.getInputLink(slot);
  return link ? ofLink(source.graph, link, steps + 1) : UNKNOWN;
}
