/**
 * What an inspector shows: the pass that the widgets mean now as far as the page can know it, or else the one
 * that ran.
 */

import { readPainting } from "./painting.mjs";
import { readPass } from "./pass.mjs";

/**
 * @typedef {object} State
 * @property {number[]} scales of the pass, counted from the end, coarsest first
 * @property {[number, number][]} grids of these scales
 * @property {number[]} open tokens of each that may change
 * @property {string[]} colours
 * @property {number[]} bounds percent
 * @property {Uint16Array[]} ranks of each scale's cells
 * @property {string} text of the painting, and
 * @property {import("./painting.mjs").Painting | null} painting
 * @property {boolean} editable whether the bounds can be moved
 * @property {{key: string, values?: object} | null} note what is not as one would think
 */

/**
 * @param {import("./decode.mjs").Inspection} inspection of the node itself
 * @param {import("./decode.mjs").Inspection | null} ran of the MoSs Token Dispatch, from the same draft
 * @param {import("./graph.mjs").Said | null} said what the widgets of the MoSs Token Dispatch say; null:
 * there is
 *     none
 * @param {State | null} last that was shown, for while the numbers are being typed
 */
function passNow(inspection, ran, said, last) {
  const before = (ran ?? inspection).ran;
  const locked = (key, values) => ({ pass: before, note: { key, values }, editable: false });
  if (!said) return locked("lock.none");
  if (said.k !== null && said.k !== inspection.left.length) return locked("lock.stale", { k: said.k });
  if (!said.pass) return locked(ran ? "lock.linked" : "lock.unknown");
  const pass = readPass(said.pass, inspection);
  if (!pass.problem) return { pass, note: said.own ? null : { key: "lock.elsewhere" }, editable: said.own };
  const { scales, bounds } = last ?? before;
  return { pass: { scales, bounds }, note: pass.problem, editable: said.own };
}

/** The ranks that were sent, where nothing was painted since; what is in a mask only the server knows. */
function ranksNow(inspection, ran, said, index, rank) {
  const text = said?.painting ?? ran?.painting ?? "";
  const masked = said?.masked ?? false;
  const fits = (sent) => sent && sent.painting === text && sent.masked === masked;
  const sent = [ran, inspection].find(fits);
  const known = !masked && (said?.painting !== undefined || ran || !said);
  if (sent && (known || ran)) return { ranks: sent.pictures[index].ranks };
  if (known) return { ranks: rank(text) };
  return { ranks: (ran ?? inspection).pictures[index].ranks, note: { key: "lock.mask" } };
}

/**
 * @param {object} shown
 * @param {import("./decode.mjs").Inspection} shown.inspection
 * @param {import("./decode.mjs").Inspection | null} shown.ran
 * @param {import("./graph.mjs").Said | null} shown.said
 * @param {State | null} shown.last
 * @param {number} shown.index of the picture
 * @param {(text: string) => Uint16Array[]} shown.rank ranks of all scales that are left, for a painting
 * @returns {State}
 */
export function stateOf({ inspection, ran, said, last, index, rank }) {
  const { pass, note, editable } = passNow(inspection, ran, said, last);
  const found = ranksNow(inspection, ran, said, index, rank);
  const places = pass.scales.map((scale) => inspection.left.indexOf(scale));
  const pick = (list) => places.map((place) => list[place]);
  return {
    ...pass, editable, text: said?.painting ?? "",
    grids: pick(inspection.grids),
    open: pick(inspection.open),
    colours: pick(inspection.colours),
    ranks: pick(found.ranks),
    painting: readPainting(said?.painting ?? ""),
    note: note ?? found.note ?? null,
  };
}
