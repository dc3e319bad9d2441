/** The inspector's style sheet. Colours are the theme's own; those of the scales come with the data. */

const SHEET = `
.moss-inspector {
  box-sizing: border-box; display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; min-height: 300px;
  color: var(--input-text, #ddd); font: 11px/16px Inter, Arial, sans-serif; user-select: none; cursor: default;
}
.moss-report {
  box-sizing: border-box; width: 100%; height: 100%; margin: 0; padding: 6px 8px; overflow: auto; border-radius: 4px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: 11px/16px ui-monospace, monospace;
  white-space: pre-wrap; user-select: text; cursor: text;
}
.moss-inspector [hidden] { display: none !important; }
.moss-inspector button {
  box-sizing: border-box; margin: 0; padding: 0 8px; height: 20px; border: 1px solid transparent; border-radius: 4px;
  background: none; color: inherit; font: inherit; cursor: pointer; white-space: nowrap;
}
.moss-inspector button:hover { background: var(--comfy-input-bg, #222); }
.moss-inspector button:disabled { opacity: 0.4; cursor: default; background: none; }
.moss-inspector :focus-visible { outline: 2px solid var(--p-primary-color, #60a5fa); outline-offset: 1px; }
.moss-brush { display: flex; align-items: center; gap: 4px; width: 100%; }
.moss-inspector .moss-brush button { height: 16px; padding: 0 6px; line-height: 14px; }
.moss-brush button:last-child { margin-left: auto; }
.moss-bar, .moss-foot { display: flex; align-items: center; justify-content: space-between; gap: 8px; flex: none; }
.moss-views, .moss-batch { display: flex; align-items: center; gap: 2px; }
.moss-views { margin-right: auto; }
.moss-inspector button[aria-pressed="false"] { color: var(--descrip-text, #999); }
.moss-inspector button[aria-pressed="true"] {
  background: var(--comfy-input-bg, #222); border-color: var(--border-color, #4e4e4e); color: inherit;
}
.moss-batch span { min-width: 30px; text-align: center; }
.moss-inspector .moss-batch button { padding: 0 6px; }
.moss-stage {
  flex: 1 1 0; min-height: 120px; container-type: size; display: flex; align-items: center; justify-content: center;
  border-radius: 4px; background: var(--comfy-input-bg, #222); overflow: hidden;
}
.moss-hint { padding: 0 16px; text-align: center; color: var(--descrip-text, #999); }
.moss-picture {
  position: relative; width: min(100cqw, 100cqh * var(--moss-aspect)); aspect-ratio: var(--moss-aspect); cursor: crosshair;
}
.moss-inspector .moss-picture:focus-visible { outline-offset: -2px; }
.moss-picture canvas { display: block; width: 100%; height: 100%; }
.moss-cell {
  position: absolute; box-sizing: content-box; margin: -2px; border: 2px solid #fff; outline: 1px solid #000;
  border-radius: 1px; pointer-events: none;
}
.moss-read { flex: none; height: 32px; overflow: hidden; font-variant-numeric: tabular-nums; }
.moss-words > div { display: flex; flex-wrap: wrap; column-gap: 10px; }
.moss-scale { display: inline-flex; align-items: center; gap: 4px; white-space: nowrap; }
.moss-scale::before {
  content: ""; width: 9px; height: 9px; border-radius: 2px; background: var(--moss-colour);
  box-shadow: 0 0 0 1px rgba(127, 127, 127, 0.5);
}
.moss-quiet { color: var(--descrip-text, #999); }
.moss-histogram { flex: none; }
.moss-handles { position: relative; height: 18px; }
.moss-inspector .moss-handle {
  position: absolute; top: 0; height: 18px; min-width: 28px; padding: 0 2px; transform: translateX(-50%);
  border: 1px solid var(--border-color, #4e4e4e); border-bottom: 3px solid var(--moss-colour);
  background: var(--comfy-input-bg, #222); cursor: ew-resize; touch-action: none; line-height: 13px; font-size: 10px;
  font-variant-numeric: tabular-nums;
}
.moss-inspector .moss-handle:disabled { border-color: transparent; border-bottom-color: var(--moss-colour); opacity: 1; cursor: default; }
.moss-histogram canvas { display: block; width: 100%; height: 64px; border-bottom: 1px solid var(--border-color, #4e4e4e); }
.moss-histogram.moss-movable canvas { cursor: ew-resize; touch-action: none; }
.moss-axis { display: flex; justify-content: space-between; font-size: 10px; line-height: 14px; }
.moss-foot { min-height: 20px; font-variant-numeric: tabular-nums; }
.moss-inspector .moss-foot button { border-color: var(--border-color, #4e4e4e); }
`;

/** Add the style sheet to the page, once. */
export function addStyle() {
  const style = document.createElement("style");
  style.textContent = SHEET;
  document.head.append(style);
}
