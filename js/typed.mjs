/** Numbers as people type them. The same rules as `percentages` in comfy_moss/typed.py. */

const NUMBER = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$/;
const BETWEEN = /\s*[,;|/]\s*|\s+/;
const FROM = "\u3001\u2236\u00d7\u2715\u2044\u2212\u2013\u201c\u201d\u2019\u2018";
const TO = ",:xx/--\"\"''";
const QUOTES = /^["'`]+|["'`]+$/g;
const BRACKETS = /^[[\](){}<>]+|[[\](){}<>]+$/g;

/** Without quotes and spaces around it, and in plain characters. */
function plain(text) {
  const twins = Array.from(String(text).normalize("NFKC"), (letter) => TO[FROM.indexOf(letter)] ?? letter);
  return twins.join("").trim().replace(QUOTES, "").trim();
}

/**
 * Numbers in percent: "80, 70", "80 70", "[80; 70]", "80%,70%".
 * @param {string} text
 * @returns {number[] | null} null: something else, commas and semicolons mixed, or what looks like fractions
 *     of 1
 */
export function percentages(text) {
  const told = plain(text).replace(BRACKETS, "").replaceAll("%", "").trim().replace(/[,;]$/, "");
  const parts = told.split(BETWEEN);
  const values = parts.map(Number);
  if (told.includes(",") && told.includes(";")) return null;
  if (!parts.every((part) => NUMBER.test(part)) || !values.every(Number.isFinite)) return null;
  const fractions = Math.max(...values) <= 1 && values.some((value) => value > 0 && value < 1);
  return fractions && !plain(text).includes("%") ? null : values;
}
