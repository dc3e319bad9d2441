/**
 * What the page says, in the host's language: `moss` of locales/<language>/main.json, which the host serves.
 */

const FALLBACK = "en";
const TELLING = 20; // letters of a template that is known from the end of a sentence alone

let spoken = {};
let templates = []; // of the server's sentences: what they look like, and how they are said here

/**
 * Read the words of a language, English where there are none.
 * @param {{fetchApi: (path: string) => Promise<Response>}} api of the host
 * @param {string} language such as "zh"
 */
export async function learn(api, language) {
  const all = await (await api.fetchApi("/i18n")).json();
  speak({ ...all[FALLBACK]?.moss, ...all[language]?.moss });
}

/** @param {Object<string, *>} words see `learn` */
export function speak(words) {
  spoken = words;
  const entries = Object.entries(words.sentences ?? {}).map(([text, said]) => compile(text, said));
  templates = entries.sort((one, other) => other.letters - one.letters); // the most telling one first
}

/** A template such as "{path} holds no weights" as a pattern; long ones may end a sentence that says more. */
function compile(text, said) {
  const names = [...text.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
  const pattern = text.replace(/[.*+?^$()[\]|\\]/g, "\\$&").replace(/\{\w+\}/g, "(.*?)");
  const { length: letters } = text.replace(/\{\w+\}/g, "");
  const lead = letters < TELLING ? "^()" : "^(|.* )";
  return { pattern: new RegExp(`${lead}${pattern}$`, "su"), letters, names, said };
}

/**
 * @param {string} key of the words; what has no words stays as it is
 * @param {Object<string, string | number>} values for the names in braces
 */
export function say(key, values = {}) {
  return String(spoken[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/**
 * Words that are more than a sentence: a table of words.
 * @param {string} key
 */
export const table = (key) => spoken[key] ?? {};

/** An English text of the server in the host's language, as far as there are words for its sentences. */
export function translated(text) {
  return text.replace(/.+?(?:(?<=\w|\))\. |$)/gm, ofSentence);
}

function ofSentence(sentence) {
  const [, plain, stop] = /^(.*?)(\.? ?)$/su.exec(sentence);
  const found = ofWords(plain);
  return found === plain ? sentence : `${found}${stop && "\u3002"}`;
}

function ofWords(text) {
  for (const { pattern, names, said } of templates) {
    const found = pattern.exec(text);
    if (found) return found[1] + filled(said, names, found.slice(2));
  }
  return text;
}

/** Put values into a template's words; values may be words, or lists of such, themselves. */
function filled(said, names, values) {
  return said.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[names.indexOf(name)];
    const listed = value.split(/, (?![^(]*\))/).map(ofWords).join(", ");
    return listed === value ? ofWords(value) : listed;
  });
}
