/**
 * What the widgets of MoSs Token Dispatch mean: which scales a pass redraws, and their bounds.
 *
 * The same rules as in comfy_moss/nodes/maps.py. No DOM, no host. Problems are keys of words with their
 * values.
 */

import { boundsFromShares } from "./dispatch.mjs";
import { percentages } from "./typed.mjs";

export const CUSTOM_BOUNDS = "custom bounds";
export const CUSTOM_SHARES = "custom shares";
const METHOD = "method";
const AUTOMATIC = "automatic";

/**
 * @typedef {object} Pass
 * @property {number[]} scales counted from the end, -1 = the last, coarsest first
 * @property {number[]} bounds percent, one a scale
 *
 * @typedef {{key: string, values: object}} Problem
 *
 * @typedef {object} Choices of a draft
 * @property {number[]} left the scales that it leaves, counted from the end, coarsest first
 * @property {Object<string, Object<number, number[] | null>>} known by preset and number of scales the bounds
 *     for this
 *     model; null: there are none
 * @property {Pass | null} planned the pass that the draft's method goes on with
 */

/** Whether a preset takes the numbers that are typed. */
export const isCustom = (preset) => preset === CUSTOM_BOUNDS || preset === CUSTOM_SHARES;

const isAll = (text) => ["", "all"].includes(text.trim().toLowerCase());

/**
 * @param {string} text of the `scales` widget
 * @param {number[]} left
 * @returns {number[] | null} null: not scales of this draft, or not from coarse to fine
 */
export function parseScales(text, left) {
  if (isAll(text)) return left;
  if (text.replace(/-?\d+/g, "").replace(/[ ,;]/g, "")) return null;
  const scales = (text.match(/-?\d+/g) ?? []).map((number) => -Math.abs(Number(number)));
  const rise = scales.every((scale, i) => left.includes(scale) && (i === 0 || scale > scales[i - 1]));
  return scales.length && rise ? scales : null;
}

/**
 * The scales of the pass: those that are named; else those of the method's pass, unless all that are left are
 * meant.
 * @returns {number[] | null} see parseScales
 */
export function readScales({ preset, scales }, { left, planned }) {
  const follows = planned && isAll(scales) && (preset === METHOD || isCustom(preset));
  return follows ? planned.scales : parseScales(scales, left);
}

/**
 * @param {{preset: string, values: string, scales: string}} widgets
 * @param {Choices} choices
 * @returns {Pass | {problem: Problem}}
 */
export function readPass({ preset, values, scales: text }, { left, known, planned }) {
  if (preset === METHOD && planned && isAll(text)) return planned;
  const scales = readScales({ preset, scales: text }, { left, planned });
  if (!scales) return problem("problem.scales", { text, left: left.join(", ") });
  if (isCustom(preset)) return typed(preset, values, scales);
  const bounds = known[preset === METHOD ? AUTOMATIC : preset]?.[scales.length];
  return bounds ? { scales, bounds } : problem("problem.unknown", { k: scales.length });
}

const problem = (key, values) => ({ problem: { key, values } });

function typed(preset, text, scales) {
  const numbers = percentages(text);
  if (!numbers) return problem("problem.numbers", { text });
  const counted = { given: numbers.length, k: scales.length };
  if (counted.given !== counted.k) return problem("problem.count", counted);
  if (preset === CUSTOM_SHARES) {
    const sum = numbers.reduce((total, share) => total + share, 0);
    if (Math.min(...numbers) < 0 || sum > 100 + 1e-6) return problem("problem.shares");
    return { scales, bounds: boundsFromShares(numbers) };
  }
  const fall = numbers.every((bound, i) => bound >= 0 && bound <= (numbers[i - 1] ?? 100));
  return fall ? { scales, bounds: numbers } : problem("problem.bounds");
}

const rounded = (percent) => Number(percent.toFixed(4));

/**
 * Numbers as text for the `values` widget.
 * @param {number[]} numbers percent
 */
export const formatNumbers = (numbers) => numbers.map((number) => String(rounded(number))).join(", ");

/**
 * Bounds as the text that a preset's numbers are typed in.
 * @param {string} preset
 * @param {number[]} bounds percent
 */
export function formatBounds(preset, bounds) {
  if (preset !== CUSTOM_SHARES) return formatNumbers(bounds);
  return formatNumbers(bounds.map((bound, i) => bound - (bounds[i + 1] ?? 0)));
}

/**
 * The same sharing out over another number of scales: the line from the first bound to 0 behind the last,
 * read at as
 * many places.
 * @param {number[]} bounds percent, falling
 * @param {number} k
 * @returns {number[]} k bounds, to a tenth
 */
export function resample(bounds, k) {
  const at = (place) => bounds[place] ?? 0;
  return Array.from({ length: k }, (_, i) => {
    const place = (i * bounds.length) / k;
    const low = Math.floor(place);
    return Number((at(low) + (at(low + 1) - at(low)) * (place - low)).toFixed(1));
  });
}
