"""Build the example workflows in a real ComfyUI, run them and take their pictures: python docs/workflows.py
[--only NAME].

Needs a ComfyUI checkout (COMFYUI_PATH), playwright and Chromium.  Each workflow is drawn by the front-end
itself, so both its formats are what a user would save: `workflows/NAME.json` with `NAME.jpg` for the template
browser, `workflows/api/NAME.json` for automation.  Screenshots for the README go to docs/images.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from workflow_graphs import GRAPHS, HART, Graph

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402, F401

sys.path[0] = str(ROOT / "tests")  # the folder kernels/ must not pass for the package of that name
from hart_builders import write_hart_model  # noqa: E402
from hosting import Host  # noqa: E402

SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False, "Comfy.Minimap.Visible": False,
    "Comfy.RightSidePanel.IsOpen": False, "Comfy.Workflow.Persist": False, "Comfy.Graph.CanvasInfo": False,
}
THUMBNAIL = 400  # pixels

BUILD = """async (graph) => {
  app.graph.clear();
  const made = {};
  for (const [key, [type, x, y, w, h, values]] of Object.entries(graph.nodes)) {
    const node = LiteGraph.createNode(type);
    if (!node) throw new Error("no node " + type);
    node.pos = [x, y];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) {
      const named = node.widgets.find((w) => w.name === name);
      const widget = named ?? (type === "MarkdownNote" ? node.widgets[0] : null);
      if (!widget) throw new Error(type + " has no widget " + name);
      widget.value = value;
    }
    node.setSize([w, h]);
    if (graph.titles[key]) node.title = graph.titles[key];
    made[key] = node;
  }
  for (const [source, output, target, input] of graph.links) {
    const slot = made[target].inputs.findIndex((i) => i.name === input);
    if (slot < 0) throw new Error(target + " has no input " + input);
    made[source].connect(output, made[target], slot);
  }
  const ui = app.graph.serialize();
  const api = (await app.graphToPrompt()).output;
  return [ui, api, Object.fromEntries(Object.entries(made).map(([key, node]) => [key, String(node.id)]))];
}"""
RUN = """async () => {
  window.mossRun = new Promise((done) => {
    app.api.addEventListener("execution_success", () => done(null), {once: true});
    const fail = (event) => done(event.detail.exception_message);
    app.api.addEventListener("execution_error", fail, {once: true});
  });
  await app.queuePrompt(0);
  return await window.mossRun;
}"""
FIT = """() => {
  const nodes = app.graph.nodes, pad = 40;
  const left = Math.min(...nodes.map((n) => n.pos[0])) - pad;
  const top = Math.min(...nodes.map((n) => n.pos[1])) - 70;
  const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0])) + pad;
  const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1])) + pad;
  const scale = Math.min((innerWidth - 80) / (right - left), (innerHeight - 110) / (bottom - top), 1);
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [70 / scale - left, 100 / scale - top];
  app.canvas.setDirty(true, true);
}"""


def open_page(page: Page, host: Host) -> None:
    """Load the front-end and wait until it is ready."""
    host.post("/api/settings", SETTINGS)
    page.goto(host.url, wait_until="domcontentloaded")
    page.wait_for_function(
        "window.app?.extensionManager && window.app?.graph && window.app?.canvas", timeout=120_000
    )
    page.wait_for_timeout(2500)


def build(page: Page, name: str, graph: Graph) -> dict[str, str]:
    """Write both formats of a workflow; returns the node ids by key."""
    ui, api, ids = page.evaluate(BUILD, {"nodes": graph.nodes, "links": graph.links, "titles": graph.titles})
    (ROOT / "workflows" / "api").mkdir(parents=True, exist_ok=True)
    for path, content in ((f"workflows/{name}.json", ui), (f"workflows/api/{name}.json", api)):
        (ROOT / path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return ids


def inspector_pictures(page: Page) -> None:
    """Screenshots of the pointer on a token, and of a bound that is being dragged."""
    page.evaluate("""() => {
      const node = app.graph.nodes.find((n) => n.comfyClass === "MoSs_TokenDispatch");
      app.canvas.ds.scale = 1.3;
      app.canvas.ds.offset = [420 - node.pos[0], 90 - node.pos[1]];
      app.canvas.setDirty(true, true);
    }""")
    page.wait_for_timeout(800)
    clip = {"x": 500, "y": 60, "width": 540, "height": 920}
    box = page.locator(".moss-stage:visible").last.bounding_box()
    page.mouse.move(box["x"] + 0.62 * box["width"], box["y"] + 0.33 * box["height"])
    page.wait_for_timeout(500)
    page.screenshot(path=ROOT / "docs" / "images" / "inspector_hover.png", clip=clip)
    handle = page.locator("[role=slider]:visible").last.bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 40, y, steps=8)
    page.wait_for_timeout(500)
    page.screenshot(path=ROOT / "docs" / "images" / "inspector_drag.png", clip=clip)
    page.mouse.up()


def pictures(host: Host, keys: tuple[str, ...], ids: dict[str, str]) -> list[Image.Image]:
    """What preview and save nodes of the last run showed."""
    history: dict[str, Any] = list(host.get("/history").values())[-1]["outputs"]
    found = [history[ids[key]]["images"][0] for key in keys]
    query = ["&".join(f"{k}={v}" for k, v in image.items()) for image in found]
    return [Image.open(io.BytesIO(host.get(f"/view?{q}"))).convert("RGB") for q in query]


def thumbnail(images: list[Image.Image]) -> Image.Image:
    """One, two side by side, or four in a square."""
    across = 1 if len(images) == 1 else 2
    rows = -(-len(images) // across)
    tile = THUMBNAIL // across
    sheet = Image.new("RGB", (THUMBNAIL, tile * rows), "white")
    for n, image in enumerate(images):
        sheet.paste(
            image.resize((tile, tile), Image.Resampling.LANCZOS), (n % across * tile, n // across * tile)
        )
    return sheet


def drawn(picture: Image.Image) -> Image.Image:
    """A picture of any shape in a white square."""
    sheet = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    picture.thumbnail(sheet.size, Image.Resampling.LANCZOS)
    sheet.paste(picture, (0, (THUMBNAIL - picture.height) // 2))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(GRAPHS))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with Host() as host, sync_playwright() as playwright:
        # a tiny one with random weights, so that the graph runs
        write_hart_model(host.base / "models" / "hart" / HART)
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for name in [args.only] if args.only else GRAPHS:
            # a new one: it would show the last run's pictures
            page = browser.new_page(viewport={"width": 1720, "height": 1000})
            open_page(page, host)
            ids = build(page, name, GRAPHS[name])
            page.evaluate(FIT)
            if error := page.evaluate(RUN):
                sys.exit(f"{name}: {error}")
            page.wait_for_timeout(7000)  # until the host's messages are gone
            if drawing := GRAPHS[name].drawing:
                image = drawn(Image.open(ROOT / drawing).convert("RGB"))
            else:
                page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")
                image = thumbnail(pictures(host, GRAPHS[name].thumbnail, ids))
            image.save(ROOT / "workflows" / f"{name}.jpg", quality=88)
            if name == "moss4_text_to_image":
                inspector_pictures(page)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
