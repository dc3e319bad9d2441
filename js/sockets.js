/**
 * One colour for every kind of socket of the pack, in both renderers: the chain's wires can be told
 * apart.
 */

import { app } from "../../scripts/app.js";

const STAGES = ["MOSS_DRAFT", "MOSS_FREQUENCY", "MOSS_DISPATCH", "MOSS_RESIDUAL"];
const COLOURS = {
  MOSS_MODEL: "#cc79a7",
  MOSS_DRAFT: "#56b4e9",
  MOSS_FREQUENCY: "#b63679",
  MOSS_DISPATCH: "#d55e00",
  MOSS_RESIDUAL: "#009e73",
};

/** The kind of an input that takes any stage, as the server writes it: what it is meant for comes first. */
const anyStage = (first) => [first, ...STAGES.filter((stage) => stage !== first)].join(",");

const all = { ...COLOURS };
for (const stage of STAGES) all[anyStage(stage)] = COLOURS[stage];

/** Keep the colours in a table of the host's, whose palettes write an empty one for every unknown kind. */
function keep(table) {
  for (const [type, colour] of Object.entries(all)) {
    const kept = { get: () => colour, set: () => {}, enumerable: true, configurable: true };
    Object.defineProperty(table, type, kept);
  }
}

app.registerExtension({
  name: "MoSs.Sockets",
  init() {
    keep(LGraphCanvas.link_type_colors);
    const rules = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    const sheet = document.createElement("style");
    sheet.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(sheet);
  },
  setup() {
    if (app.canvas.default_connection_color_byType) keep(app.canvas.default_connection_color_byType);
  },
});
