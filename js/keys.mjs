/** Keys pressed in what the pack shows on a node. */

const DELETING = ["Delete", "Backspace"];

/**
 * Keep keys inside an element: the host would take Delete for the node, and letters for its commands. With
 * Ctrl or Cmd
 * they are the host's still, such as undo, save and run.
 * @param {HTMLElement} root
 */
export function keepKeys(root) {
  root.addEventListener("keydown", (event) => {
    const forHost = (event.ctrlKey || event.metaKey) && !DELETING.includes(event.key);
    if (!forHost) event.stopPropagation();
  });
}
