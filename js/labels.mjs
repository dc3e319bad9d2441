/** Names of a menu's choices in the host's language; what is saved and sent stays as it is. */

import { table } from "./words.mjs";

/** @param {object} node of this pack */
export function nameChoices(node) {
  for (const { options } of node.widgets ?? []) {
    if (!Array.isArray(options?.values)) continue;
    options.getOptionLabel = (value) => table("options")[value] ?? String(value ?? "");
  }
}
