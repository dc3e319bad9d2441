/**
 * The `values` widget of MoSs Token Dispatch: it holds the numbers in use, and is grey while they are not
 * its own.
 */

import { boundsFromShares } from "./dispatch.mjs";
import { greyValues, holdValues, writeText } from "./graph.mjs";
import {
  CUSTOM_SHARES, formatBounds, formatNumbers, isCustom, readPass, readScales, resample,
} from "./pass.mjs";
import { percentages } from "./typed.mjs";

const fitted = new WeakMap(); // how many numbers a node's values last had to be, by node

/** The choices of the draft as it will be: of another number of scales, if that was changed since the run. */
function choicesNow(inspection, k) {
  if (k === null || k === inspection?.left.length) return inspection;
  const left = Array.from({ length: k }, (_, i) => i - k);
  return { left, known: inspection?.known ?? {}, planned: null };
}

/** Other numbers of scales take the same sharing out; numbers that are being typed stay. */
function refit(dispatch, { preset, values }, k) {
  const numbers = percentages(values);
  const before = fitted.get(dispatch);
  if (numbers?.length !== k && numbers?.length !== before) return;
  fitted.set(dispatch, k);
  if (numbers.length === k) return;
  const bounds = preset === CUSTOM_SHARES ? boundsFromShares(numbers) : numbers;
  writeText(dispatch, "values", formatBounds(preset, resample(bounds, k)));
}

/**
 * @param {object} dispatch a MoSs Token Dispatch node
 * @param {import("./graph.mjs").Said} said what its widgets say
 * @param {import("./decode.mjs").Inspection | null} inspection of its last run
 */
export function keepValues(dispatch, { pass, k }, inspection) {
  if (!pass) {
    if (inspection) holdValues(dispatch, formatNumbers(inspection.ran.bounds));
    return;
  }
  const custom = isCustom(pass.preset);
  greyValues(dispatch, !custom);
  const choices = choicesNow(inspection, k);
  if (!choices) return;
  const scales = readScales(pass, choices);
  if (custom && scales) return void refit(dispatch, pass, scales.length);
  const { bounds } = readPass(pass, choices);
  if (!bounds) return;
  fitted.set(dispatch, bounds.length);
  writeText(dispatch, "values", formatNumbers(bounds));
}
