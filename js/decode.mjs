/** The inspection that the nodes send, decoded once: base64 to typed arrays. */

const VERSION = 2;

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// Sent little-endian, which is the byte order of every platform that browsers run on.
const float32 = (text) => new Float32Array(bytes(text).buffer);
const uint16 = (text) => new Uint16Array(bytes(text).buffer);

/**
 * @typedef {object} Picture of a batch
 * @property {Float32Array} frequency per cell of the final grid, row-major
 * @property {Uint8Array} percentile 0 (calmest) to 255, of the same cells
 * @property {Uint16Array[]} ranks per refine scale, of the cells of its own grid, 0 = busiest
 * @property {{filename: string, subfolder: string, type: string} | undefined} file the drafted picture
 */

/**
 * @typedef {object} Inspection
 * @property {"frequency" | "dispatch"} kind
 * @property {[number, number][]} grids of the refine scales, height and width, coarsest first
 * @property {[number, number]} final grid
 * @property {number[]} bounds in use when the node ran, percent
 * @property {Object<string, number[] | null>} known by preset its bounds for this model and number of scales; null: none
 * @property {string[]} colours of the refine scales
 * @property {string[]} palette of the heatmap, low to high
 * @property {Picture[]} pictures
 * @property {number} draftTokens in the KV cache
 * @property {number} kvBytes
 * @property {{linear: number, attention: number, draft: number, dense: number}} work
 */

/**
 * @param {object} payload `ui.moss_inspector[0]` of an executed node
 * @returns {Inspection}
 * @throws {Error} the payload is of another version than this front-end reads
 */
export function decode(payload) {
  if (payload.version !== VERSION) {
    throw new Error("The server sent a map of another version; reload the page.");
  }
  return {
    kind: payload.kind,
    grids: payload.grids,
    final: payload.map.grid,
    bounds: payload.bounds,
    known: payload.known,
    colours: payload.colours,
    palette: payload.palette,
    draftTokens: payload.draft_tokens,
    kvBytes: payload.kv_bytes,
    work: payload.work,
    pictures: payload.map.frequency.map((text, n) => ({
      frequency: float32(text),
      percentile: bytes(payload.map.percentile[n]),
      ranks: payload.ranks[n].map(uint16),
      file: payload.pictures?.[n],
    })),
  };
}
