/**
 * What the page says, in the host's language: `moss` of locales/<language>/main.json, which the host serves.
 */

const FALLBACK = "en";

let spoken = {};

/**
 * Read the words of a language, English where there are none.
 * @param {{fetchApi: (path: string) => Promise<Response>}} api of the host
 * @param {string} language such as "zh"
 */
export async function learn(api, language) {
  const all = await (await api.fetchApi("/i18n")).json();
  spoken = { ...all[FALLBACK]?.moss, ...all[language]?.moss };
}

/**
 * @param {string} key of the words; what has no words stays as it is
 * @param {Object<string, string | number>} values for the names in braces
 */
export function say(key, values = {}) {
  return String(spoken[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/**
 * Words that are more than a sentence: a table of words, or a list of patterns.
 * @param {string} key
 */
export const table = (key) => spoken[key] ?? {};

/** An English sentence of the server in the host's language, where there is a pattern for it. */
export function translated(sentence) {
  for (const [pattern, replacement] of spoken.errors ?? []) {
    const found = sentence.replace(new RegExp(pattern, "u"), replacement);
    if (found !== sentence) return found;
  }
  return sentence;
}
