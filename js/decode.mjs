/** The inspection that the nodes send, decoded once: base64 to typed arrays. */

import { say } from "./words.mjs";

const VERSION = 3;

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
 * @property {Uint16Array[]} ranks per scale that is left, of the cells of its own grid, 0 = busiest
 * @property {{filename: string, subfolder: string, type: string} | undefined} file the drafted picture
 */

/**
 * @typedef {object} Inspection
 * @property {"frequency" | "dispatch"} kind
 * @property {number[]} left scales that the draft leaves, counted from the end (-1 = the last), coarsest
 *     first
 * @property {[number, number][]} grids of these, height and width
 * @property {number[]} open how many tokens of each may change; ranks from there on never do
 * @property {string[]} colours of these
 * @property {string} drafted colour of what stays as drafted
 * @property {import("./pass.mjs").Pass} ran the pass of the run; of MoSs Frequency Map one that suits the
 * model
 * @property {string} painting that the ranks were made with, as text
 * @property {boolean} masked whether a mask was part of it
 * @property {Object<string, Object<number, number[] | null>>} known see pass.mjs
 * @property {import("./pass.mjs").Pass | null} planned see pass.mjs
 * @property {[number, number]} final grid of the map: the last of the schedule
 * @property {string[]} palette of the heatmap, low to high
 * @property {Picture[]} pictures
 * @property {number} draftTokens in the KV cache
 * @property {number} kvBytes
 * @property {{linear: number, attention: number, rows: number, draft: number, dense: number}} work
 */

const decoded = new WeakMap(); // by payload

/** Whether two payloads are about one map. */
export const sameMap = (one, other) => String(one.map.frequency) === String(other.map.frequency);

/**
 * @param {object} payload `ui.moss_inspector[0]` of an executed node
 * @returns {Inspection}
 * @throws {Error} the payload is of another version than this front-end reads
 */
export function decode(payload) {
  if (!decoded.has(payload)) decoded.set(payload, read(payload));
  return decoded.get(payload);
}

function read(payload) {
  if (payload.version !== VERSION) throw new Error(say("inspector.version"));
  const { kind, grids, open, colours, drafted, painting, masked, known, planned, palette, work } = payload;
  return {
    kind, grids, open, colours, drafted, painting, masked, known, planned, palette, work,
    left: payload.scales.map((scale) => scale - payload.length),
    ran: payload.pass,
    final: payload.map.grid,
    draftTokens: payload.draft_tokens,
    kvBytes: payload.kv_bytes,
    pictures: payload.map.frequency.map((text, n) => ({
      frequency: float32(text),
      percentile: bytes(payload.map.percentile[n]),
      ranks: payload.ranks[n].map(uint16),
      file: payload.pictures?.[n],
    })),
  };
}
