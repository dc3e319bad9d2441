/** Which drafts are picked, and the text that the `picks` widget keeps it in. No DOM, no host. */

const RANGE = /^(\d+)(?:-(\d+))?$/;

/**
 * @param {string} text numbers from 1, such as "1, 3" or "2-4", or "all"
 * @param {number} count of drafts
 * @returns {number[] | null} indices from 0, ascending, each once; null: something else, or others than these
 */
export function parsePicks(text, count) {
  const told = String(text).trim().toLowerCase();
  if (told === "all") return Array.from({ length: count }, (_, index) => index);
  const parts = told.replace(/\s*-\s*/g, "-").split(/[,;\s]+/).filter(Boolean);
  const ranges = parts.map((part) => RANGE.exec(part));
  if (!ranges.length || !ranges.every(Boolean)) return null;
  const pairs = ranges.map(([, first, last = first]) => [Number(first), Number(last)]);
  if (!pairs.every(([first, last]) => first >= 1 && first <= last && last <= count)) return null;
  const all = Array.from({ length: count }, (_, index) => index);
  return all.filter((index) => pairs.some(([first, last]) => index + 1 >= first && index + 1 <= last));
}

/** @param {number[]} picked indices from 0 */
export const formatPicks = (picked) => picked.map((index) => index + 1).join(", ");

/**
 * What a click picks.
 * @param {number[]} picked indices from 0
 * @param {number} index that is clicked
 * @param {boolean} more also keep the others; a second click takes it away again, but never the last one
 * @returns {number[]}
 */
export function pick(picked, index, more) {
  if (!more) return [index];
  const others = picked.filter((other) => other !== index);
  if (others.length === picked.length) return [...picked, index].sort((a, b) => a - b);
  return others.length ? others : picked;
}
