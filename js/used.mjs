/** What a draft will use, from its widgets and its model's name, and what it used. No DOM, no host. */

const OWN_AREA = "model's own";

/**
 * @param {{aspect: string, area: string, cfg: number, tau: number}} settings
 * @param {string | null} model its name in the loader's menu
 * @param {{models: Object<string, object>, sizes: Object<string, Object<string, [number, number]>>}} facts
 * @returns {{width: number, height: number, cfg: number, tau: number, learned: boolean} | null}
 *   null: the model is not known by its name
 */
export function expected(settings, model, facts) {
  const name = model?.split("/").at(-1).replace(/\.(pth|bin|safetensors)$/, "") ?? "";
  const known = facts?.models[name.startsWith("nano ") ? "nano" : name];
  if (!known) return null;
  const area = settings.area === OWN_AREA ? known.area : settings.area;
  const [columns, rows] = facts.sizes[area]?.[settings.aspect] ?? [0, 0];
  return {
    width: columns * known.pixels, height: rows * known.pixels,
    cfg: settings.cfg || known.cfg, tau: settings.tau || known.tau,
    learned: known.areas.includes(area) && (!known.squares || settings.aspect === "1:1"),
  };
}

const digits = (value) => String(Number(value.toFixed(2)));

/**
 * @param {ReturnType<typeof expected>} will
 * @param {object | null} output of the last run, where nothing was changed since
 * @param {(key: string, values?: object) => string} say
 * @returns {{text: string, notes: string[]}}
 */
export function describe(will, output, say) {
  const ran = output?.moss_used?.[0];
  const used = ran ?? will;
  if (!used) return { text: say("used.unknown"), notes: [] };
  const text = say("used.line", { ...used, cfg: digits(used.cfg), tau: digits(used.tau) });
  if (!ran) return { text, notes: will.learned ? [] : [say("note.unlearned")] };
  const notes = (output.moss_notes ?? []).map(({ key, values }) => say(`note.${key}`, values));
  return { text: `${text} · ${say("used.scales", used)}`, notes };
}
