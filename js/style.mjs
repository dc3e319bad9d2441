/** The inspector's style sheet. Colours are the theme's own; those of the scales come with the data. */

const sign = (path) => `url("data:image/svg+xml,${encodeURIComponent(
  `<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 12 12'><path fill-rule='evenodd' d='${path}'/></svg>`,
)}")`;
const LOCK = sign("M3 5V4a3 3 0 0 1 6 0v1h1v6H2V5zm1.4 0h3.2V4a1.6 1.6 0 0 0-3.2 0z");
const WARNING = sign("M6 1l5.5 10H.5zM5.4 4.5v3.2h1.2V4.5zm0 4.2v1.2h1.2V8.7z");

const SHEET = `
/* a filter would draw the node and its shadow anew for every pixel that changes on a canvas in it */
.lg-node:has(.moss-inspector canvas) { filter: none; box-shadow: 0 9px 14px rgba(0, 0, 0, 0.4); border-radius: 12px; }
.moss-shell { width: 100%; height: 100%; }
.moss-inspector {
  box-sizing: border-box; display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%;
  min-height: 300px;
  color: var(--input-text, #ddd); font: 11px/16px Inter, Arial, sans-serif; user-select: none; cursor:
  default;
}
.moss-used { padding: 2px 10px; color: var(--input-text, #ddd); font: 11px/15px Inter, Arial, sans-serif; }
.moss-note { color: var(--warning-color, #e69f00); }
.moss-report {
  box-sizing: border-box; width: 100%; height: 100%; margin: 0; padding: 6px 8px; overflow: auto;
  border-radius: 4px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: 11px/16px ui-monospace,
  monospace;
  white-space: pre-wrap; user-select: text; cursor: text;
}
.moss-rows { display: grid; grid-template-columns: max-content 1fr; gap: 0 12px; margin: 0; }
.moss-rows dd { margin: 0; }
.moss-inspector [hidden] { display: none !important; }
.moss-inspector button {
  box-sizing: border-box; margin: 0; padding: 0 8px; height: 20px; border: 1px solid transparent;
  border-radius: 4px;
  background: none; color: inherit; font: inherit; cursor: pointer; white-space: nowrap;
}
.moss-inspector button:hover { background: var(--comfy-input-bg, #222); }
.moss-inspector button:disabled { opacity: 0.4; cursor: default; background: none; }
.moss-inspector :focus-visible { outline: 2px solid var(--p-primary-color, #60a5fa); outline-offset: 1px; }
.moss-brush { display: flex; align-items: center; gap: 4px; width: 100%; }
.moss-inspector .moss-brush button { height: 16px; padding: 0 6px; line-height: 14px; }
.moss-brush button:last-child { margin-left: auto; }
.moss-bar, .moss-foot {
  display: flex; flex: none; flex-wrap: wrap; align-items: center; justify-content: space-between; gap:
  2px 8px;
}
.moss-views, .moss-batch { display: flex; align-items: center; gap: 2px; }
.moss-views { margin-right: auto; }
.moss-inspector button[aria-pressed="false"] { color: var(--descrip-text, #999); }
.moss-inspector button[aria-pressed="true"] {
  background: var(--comfy-input-bg, #222); border-color: var(--border-color, #4e4e4e); color: inherit;
}
.moss-batch span { min-width: 30px; text-align: center; }
.moss-inspector .moss-batch button { padding: 0 6px; }
.moss-stage {
  flex: 1 1 0; min-height: 120px; container-type: size; display: flex; align-items: center;
  justify-content: center;
  border-radius: 4px; background: var(--comfy-input-bg, #222); overflow: hidden;
}
.moss-hint { padding: 0 16px; text-align: center; color: var(--descrip-text, #999); }
.moss-picture {
  position: relative; width: min(100cqw, 100cqh * var(--moss-aspect)); aspect-ratio: var(--moss-aspect);
  cursor: crosshair;
}
.moss-inspector .moss-picture:focus-visible { outline-offset: -2px; }
.moss-picture canvas { display: block; width: 100%; height: 100%; }
.moss-cell {
  position: absolute; left: 0; top: 0; box-sizing: content-box; margin: -2px; border: 2px solid #fff;
  outline: 1px solid #000; border-radius: 1px; pointer-events: none; will-change: transform;
}
.moss-read {
  flex: none; display: grid; min-height: 32px; font-variant-numeric: tabular-nums; contain: layout paint;
}
.moss-read > * { grid-area: 1 / 1; min-width: 0; }
.moss-words { overflow: hidden; }
.moss-legend, .moss-words > div { display: flex; flex-wrap: wrap; align-content: start; column-gap: 10px; }
.moss-legend.moss-behind { visibility: hidden; }
.moss-read .moss-brush { align-self: end; }
.moss-notice {
  flex: none; display: flex; gap: 5px; padding: 3px 6px; border-radius: 4px; background:
  var(--comfy-input-bg, #222);
}
.moss-notice::before {
  content: ""; flex: none; width: 12px; height: 16px; background: currentColor; mask: var(--moss-sign)
  center / 12px no-repeat;
}
.moss-notice[data-kind="locked"] { --moss-sign: ${LOCK}; }
.moss-notice[data-kind="problem"], .moss-notice[data-kind="failed"] { --moss-sign: ${WARNING}; }
.moss-notice[data-kind="failed"] { user-select: text; cursor: text; color: var(--error-text, #ff6b6b); }
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
  background: var(--comfy-input-bg, #222); cursor: ew-resize; touch-action: none; line-height: 13px;
  font-size: 10px;
  font-variant-numeric: tabular-nums;
}
.moss-inspector .moss-handle:disabled {
  border: 1px dashed var(--border-color, #4e4e4e); border-bottom: 3px solid var(--moss-colour); opacity: 0.75;
  background: none; cursor: not-allowed;
}
.moss-histogram canvas {
  display: block; width: 100%; height: 64px; border-bottom: 1px solid var(--border-color, #4e4e4e);
}
.moss-histogram.moss-movable canvas { cursor: ew-resize; touch-action: none; }
.moss-axis { display: flex; justify-content: space-between; font-size: 10px; line-height: 14px; }
.moss-foot { min-height: 20px; font-variant-numeric: tabular-nums; }
.moss-inspector .moss-foot button { border-color: var(--border-color, #4e4e4e); }
.moss-inspector.moss-sheet { min-height: 0; overflow: auto; }
.moss-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 6px; }
.moss-inspector .moss-card {
  display: flex; flex-direction: column; gap: 2px; height: auto; padding: 3px; text-align: start;
  border: 2px solid var(--border-color, #4e4e4e); font-variant-numeric: tabular-nums;
}
.moss-inspector .moss-card[aria-pressed="true"] { border-color: var(--p-primary-color, #60a5fa); }
.moss-pair { display: flex; gap: 2px; }
.moss-pair img { flex: 1 1 0; min-width: 0; aspect-ratio: var(--moss-aspect); border-radius: 2px; }
`;

/** Add the style sheet to the page, once. */
export function addStyle() {
  const style = document.createElement("style");
  style.textContent = SHEET;
  document.head.append(style);
}
