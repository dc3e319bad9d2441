/** Work that many events ask for and that one frame needs once. */

/**
 * @param {() => void} work
 * @returns {() => void} asks for the work at the next frame
 */
export function onceAFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}
