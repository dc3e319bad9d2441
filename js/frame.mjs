/** Work that many events ask for and that one frame needs once. */

const asked = new Set(); // work for the next frame, or for the rest of this one
let waiting = false; // for the frame

function frame() {
  try {
    for (const work of asked) { // what they ask for meanwhile comes behind them
      asked.delete(work);
      work();
    }
  } finally {
    waiting = false;
    if (asked.size) wait(); // one has failed
  }
}

function wait() {
  waiting = true;
  requestAnimationFrame(frame);
}

/**
 * @param {() => void} work
 * @returns {() => void} asks for the work at the next frame, or within a frame at its end
 */
export function onceAFrame(work) {
  return () => {
    asked.add(work);
    if (!waiting) wait();
  };
}
