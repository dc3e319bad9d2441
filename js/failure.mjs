/**
 * Why a run stopped: said in the host's language, and repeated where it concerns, since the host shows it once
 * and its message may hide the sentence.
 */

import { say, translated } from "./words.mjs";

const OURS = "MoSs_";

/** Whether the host's name of a node that ran, such as "12" or "3:12" in a subgraph, may be this node. */
const isNode = (node, { node_id: id, node_type: type }) =>
  node.comfyClass === type && String(id).split(":").at(-1) === String(node.id);

/**
 * Let everybody who listens behind this, as the host's own dialog, read the sentence in the host's language.
 * @param {object} error detail of the host's event
 */
export function translate(error) {
  if (!error.node_type?.startsWith(OURS)) return;
  error.exception_message = translated(String(error.exception_message ?? "").trim());
}

/**
 * Repeat the sentence on the node itself, or else on all that show something of this pack.
 * @param {object} error detail of the host's event
 * @param {Map<object, {fail: (sentence: string) => void}>} shown by node what can repeat it
 */
export function repeat(error, shown) {
  if (!error.node_type?.startsWith(OURS)) return;
  const sentence = String(error.exception_message ?? "").trim();
  const itself = [...shown].filter(([node]) => isNode(node, error));
  for (const [, each] of itself) each.fail(sentence);
  if (itself.length) return;
  const name = LiteGraph.registered_node_types[error.node_type]?.title ?? error.node_type;
  for (const [, each] of shown) each.fail(say("failed.at", { name, sentence }));
}
