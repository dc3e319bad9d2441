/**
 * Why a run stopped, repeated where it concerns: the host shows it once, and its message may hide the
 * sentence.
 */

import { say, translated } from "./words.mjs";

const OURS = "MoSs_";

/** Whether the host's name of a node that ran, such as "12" or "3:12" in a subgraph, may be this node. */
const isNode = (node, { node_id: id, node_type: type }) =>
  node.comfyClass === type && String(id).split(":").at(-1) === String(node.id);

/**
 * Repeat the sentence on the node itself, or else on all that show something of this pack.
 * @param {object} error detail of the host's event
 * @param {Map<object, {fail: (sentence: string) => void}>} shown by node what can repeat it
 */
export function repeat(error, shown) {
  if (!error.node_type?.startsWith(OURS)) return;
  const sentence = translated(String(error.exception_message ?? "").trim());
  const itself = [...shown].filter(([node]) => isNode(node, error));
  for (const [, each] of itself) each.fail(sentence);
  if (itself.length) return;
  const name = LiteGraph.registered_node_types[error.node_type]?.title ?? error.node_type;
  for (const [, each] of shown) each.fail(say("failed.at", { name, sentence }));
}
