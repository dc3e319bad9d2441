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
import re
import sys
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from picture_graphs import GRAPHS as PICTURES
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from workflow_graphs import ABOUT, ALIASES, BLUEPRINT, HART, Graph, blueprint
from workflow_graphs import GRAPHS as TEXTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402, F401

sys.path[0] = str(ROOT / "tests")  # the folder kernels/ must not pass for the package of that name
from hart_builders import write_hart_model  # noqa: E402
from hosting import Host, write_painted  # noqa: E402

SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False, "Comfy.Minimap.Visible": False,
    "Comfy.RightSidePanel.IsOpen": False, "Comfy.Workflow.Persist": False, "Comfy.Graph.CanvasInfo": False,
}
THUMBNAIL = 400  # pixels
GRAPHS = TEXTS | PICTURES
FIRST = next(iter(GRAPHS))

BUILD = """async (graph) => {
  app.graph.clear();
  const made = {};
  for (const [key, [type, x, y, w, h, values]] of Object.entries(graph.nodes)) {
    const node = LiteGraph.createNode(type);
    if (!node) throw new Error("no node " + type);
    node.pos = [x, y];
    app.graph.add(node);
    const { collapsed, ...widgets } = values;
    for (const [name, value] of Object.entries(widgets)) {
      const called = name === "control_after_generate" ? [name, "fixed"] : [name]; // as a primitive calls it
      const named = node.widgets.find((w) => called.includes(w.name));
      const widget = named ?? (type === "MarkdownNote" ? node.widgets[0] : null);
      if (!widget) throw new Error(type + " has no widget " + name);
      widget.value = value;
    }
    node.setSize([w, h]);
    if (collapsed) node.collapse(true);
    if (graph.models[key]) node.properties.models = graph.models[key];
    if (graph.titles[key]) node.title = graph.titles[key];
    made[key] = node;
  }
  for (const [source, output, target, input] of graph.links) {
    const slot = made[target].inputs.findIndex((i) => i.name === input);
    if (slot < 0) throw new Error(target + " has no input " + input);
    const link = made[source].connect(output, made[target], slot);
    for (const point of graph.lanes[`${target} ${input}`] ?? []) app.graph.createReroute(point, link);
  }
  if (graph.app) {
    const [inputs, result] = graph.app;
    app.graph.extra.linearMode = true;
    const ids = inputs.map(([key, widget]) => [made[key].id, widget]);
    app.graph.extra.linearData = { inputs: ids, outputs: [made[result].id] };
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
  const bottom = Math.max(...nodes.map((n) => n.pos[1] + (n.flags.collapsed ? 0 : n.size[1]))) + pad;
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
    drawn = {name: getattr(graph, name) for name in ("nodes", "links", "titles", "models", "app")}
    drawn["lanes"] = {" ".join(way): points for way, points in graph.lanes.items()}
    ui, api, ids = page.evaluate(BUILD, drawn)
    (ROOT / "workflows" / "api").mkdir(parents=True, exist_ok=True)
    for path, content in ((f"workflows/{name}.json", ui), (f"workflows/api/{name}.json", api)):
        (ROOT / path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return ids


def write_blueprint(page: Page) -> None:
    """The subgraph that the host offers beside its own, with the nodes of text to image in it."""
    inner, exposed, shown = blueprint()
    drawn = {"nodes": inner.nodes, "links": inner.links, "titles": {}, "models": {}, "app": None}
    drawn["lanes"] = {" ".join(way): points for way, points in inner.lanes.items()}
    ui, _, ids = page.evaluate(BUILD, drawn)
    content = wrapped(ui, [(int(ids[key]), widget, label) for key, widget, label in exposed], int(ids[shown]))
    path = ROOT / "subgraphs" / f"{BLUEPRINT}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def wrapped(ui: dict[str, Any], exposed: list[tuple[int, str, str]], shown: int) -> dict[str, Any]:
    """A workflow as one subgraph node.

    Args:
        exposed: node, widget and label of what the subgraph node shows.
        shown: the preview node, whose picture is the result.
    """
    nodes = {node["id"]: node for node in ui["nodes"]}
    parents = {one["id"]: one["parentId"] for one in ui["extra"].get("linkExtensions", [])}
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, link, strict=True)) for link in ui["links"]]
    for link in links:
        link |= {"parentId": parents[link["id"]]} if link["id"] in parents else {}
    last, inputs = max(link["id"] for link in links), []
    for n, (key, widget, label) in enumerate(exposed):
        slots = nodes[key]["inputs"]
        place = next(i for i, slot in enumerate(slots) if slot.get("widget", {}).get("name") == widget)
        last += 1
        slots[place]["link"] = last
        kind = slots[place]["type"]
        values = (last, -10, n, key, place, kind)
        links.append(dict(zip(keys, values, strict=True)))
        inputs.append({"id": uuid(widget), "name": widget, "type": kind, "linkIds": [last], "label": label})
    preview = next(link for link in links if link["target_id"] == shown)
    decoder = nodes[preview["origin_id"]]
    last += 1
    decoder["outputs"][0]["links"].append(last)
    links.append(dict(zip(keys, (last, preview["origin_id"], 0, -20, 0, "IMAGE"), strict=True)))
    output = {"id": uuid("IMAGE"), "name": "IMAGE", "type": "IMAGE", "linkIds": [last]}
    reroutes = ui["extra"].get("reroutes", [])
    state = {
        "lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": last,
        "lastRerouteId": max((reroute["id"] for reroute in reroutes), default=0),
    }
    ends = {
        "inputNode": {"id": -10, "bounding": [-320, 0, 160, 40 + 20 * len(inputs)]},
        "outputNode": {"id": -20, "bounding": [1880, 500, 120, 60]},
    }
    subgraph = {
        "id": uuid(BLUEPRINT), "version": 1, "state": state, "revision": 0, "config": {}, "name": BLUEPRINT,
        **ends, "inputs": inputs, "outputs": [output], "widgets": [], "nodes": ui["nodes"], "groups": [],
        "links": links, "reroutes": reroutes, "extra": {},
        "category": "Image generation and editing/Text to image",
        "description": ABOUT,
    }
    sockets = [
        {key: one[key] for key in ("name", "label", "type")} | {"widget": {"name": one["name"]}, "link": None}
        for one in inputs
    ]
    draft = next(key for key, widget, _ in exposed if widget == "seed")
    proxies = [[str(key), widget] for key, widget, _ in exposed]
    proxies += [[str(draft), "control_after_generate"], [str(shown), "$$canvas-image-preview"]]
    node = {
        "id": 1, "type": subgraph["id"], "pos": [200, 150], "size": [380, 680], "flags": {}, "order": 0,
        "mode": 0, "inputs": sockets, "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}],
        "properties": {"proxyWidgets": proxies}, "widgets_values": [], "title": BLUEPRINT,
    }
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {"BlueprintDescription": ABOUT, "BlueprintSearchAliases": list(ALIASES)},
    }


def uuid(name: str) -> str:
    """An id that stays the same from build to build."""
    return str(uuid5(NAMESPACE_URL, f"ComfyUI-MoSs/{name}"))


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


def slug(name: str) -> str:
    """A template's name without its number, as a file name."""
    return re.sub(r"[^a-z0-9]+", "_", name.partition(" ")[2].lower()).strip("_")


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
    parser.add_argument("--only", choices=list(GRAPHS), nargs="+", default=list(GRAPHS))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with Host() as host, sync_playwright() as playwright:
        # a tiny one with random weights, so that the graph runs
        write_hart_model(host.base / "models" / "hart" / HART)
        write_painted(host.base / "input" / "example.png")
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for name in args.only:
            # a new one: it would show the last run's pictures
            page = browser.new_page(viewport={"width": 1720, "height": 1000})
            open_page(page, host)
            ids = build(page, name, GRAPHS[name])
            page.evaluate(FIT)
            drawing = GRAPHS[name].drawing
            if error := None if drawing else page.evaluate(RUN):
                sys.exit(f"{name}: {error}")
            page.wait_for_timeout(3000)  # until the host's messages are gone
            if drawing:
                image = drawn(Image.open(ROOT / drawing).convert("RGB"))
            else:
                page.screenshot(path=ROOT / "docs" / "images" / f"{slug(name)}.png")
                image = thumbnail(pictures(host, GRAPHS[name].thumbnail, ids))
            image.save(ROOT / "workflows" / f"{name}.jpg", quality=88)
            if name == FIRST:
                inspector_pictures(page)
                page.close()
                page = browser.new_page()  # nodes would inherit what was dragged
                open_page(page, host)
                write_blueprint(page)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
