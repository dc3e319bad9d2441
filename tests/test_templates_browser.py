"""Templates and the blueprint in ComfyUI's own page: opened, bypassed, muted, run; both renderers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import RUN, Page, chromium, launched, opened
from hosting import Host, checkout

ROOT = Path(__file__).resolve().parent.parent
FIRST = ROOT / "workflows" / "01 Text to image.json"
BLUEPRINT = ROOT / "subgraphs" / "MoSs Text to Image.json"
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
BYPASS, MUTE = 4, 2

pytestmark = [
    pytest.mark.browser,
    pytest.mark.host,
    pytest.mark.skipif(
        checkout() is None or chromium() is None, reason="NO COMFYUI OR NO BROWSER: NO TEMPLATE WAS OPENED"
    ),
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes 2.0"])
def page(request: pytest.FixtureRequest, host: Host) -> Iterator[Page]:
    with launched() as browser, opened(browser, host, request.param) as page:
        yield page


def load(page: Page, path: Path) -> None:
    page.page.evaluate("(graph) => app.loadGraphData(graph)", json.loads(path.read_text(encoding="utf-8")))
    page.wait(1000)


def sent(page: Page) -> dict[str, Any]:
    """The graph as the page would queue it."""
    return page.page.evaluate("async () => (await app.graphToPrompt()).output")


BOXES = """() => {
  const { ds } = app.canvas;
  const drawn = (node) => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    if (!element) return [...node.boundingRect];
    const { x, y, width, height } = element.getBoundingClientRect();
    return [x / ds.scale - ds.offset[0], y / ds.scale - ds.offset[1], width / ds.scale, height / ds.scale];
  };
  return app.graph.nodes.map((node) => [node.title, ...drawn(node)]);
}"""
SMALL = """() => {
  Object.assign(app.canvas.ds, { scale: 0.6, offset: [100, 150] });
  app.canvas.setDirty(true, true);
}"""


@pytest.mark.parametrize("name", NAMES)
def test_no_node_lies_on_another_as_the_page_draws_them(page: Page, name: str) -> None:
    load(page, ROOT / "workflows" / f"{name}.json")
    page.page.keyboard.press("Escape")  # the host's dialog of missing models
    page.page.evaluate(SMALL)
    page.wait(800)
    boxes = page.page.evaluate(BOXES)
    for (one, *a), (other, *b) in itertools.combinations(boxes, 2):
        beside = a[0] + a[2] <= b[0] + 2 or b[0] + b[2] <= a[0] + 2
        assert beside or a[1] + a[3] <= b[1] + 2 or b[1] + b[3] <= a[1] + 2, (one, a, other, b)


def label(page: Page, host: Host) -> str:
    """Run with the report of the finished latent; its method."""
    graph = sent(page)
    decoder = next(node for node in graph.values() if node["class_type"] == "VAEDecode")
    graph["told"] = {"class_type": "MoSs_Report", "inputs": {"latent": decoder["inputs"]["samples"]}}
    result = host.run(graph)
    assert result["status"]["status_str"] == "success", result["status"]
    lines = (line.split("  ", 1) for line in result["outputs"]["told"]["text"][0].splitlines())
    return next(words[1].strip() for words in lines if words[0] == "method")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (None, "draft-3; -1@45 unguided"), ("MoSs_FrequencyMap", "draft-3; -1@45 unguided"),
        ("MoSs_TokenDispatch", "draft-3"), ("MoSs_Refine", "draft-3"), ("MoSs_Composite", "draft-3"),
    ],
)
def test_a_bypassed_node_passes_something_through(
    page: Page, host: Host, kind: str | None, expected: str
) -> None:
    load(page, FIRST)
    if kind:
        page.change(kind, f"node.mode = {BYPASS}")
    assert label(page, host) == expected


def test_a_muted_node_gives_the_hosts_own_message(page: Page, host: Host) -> None:
    load(page, FIRST)
    page.change("MoSs_Refine", f"node.mode = {MUTE}")
    with pytest.raises(Exception, match="required_input_missing"):
        host.run(sent(page))


def test_a_draft_saved_before_there_were_methods_keeps_its_own(page: Page) -> None:
    saved = json.loads(FIRST.read_text(encoding="utf-8"))
    node = next(node for node in saved["nodes"] if node["type"] == "MoSs_InfinityDraft")
    node["widgets_values"] = node["widgets_values"][:-3]  # method, budget, seconds
    page.page.evaluate("(graph) => app.loadGraphData(graph)", saved)
    page.wait(500)
    draft = next(node for node in sent(page).values() if node["class_type"] == "MoSs_InfinityDraft")
    assert draft["inputs"]["method"] == "custom"
    fresh = """() => {
      const node = LiteGraph.createNode("MoSs_InfinityDraft");
      app.graph.add(node);
      return node.widgets.find(({ name }) => name === "method").value;
    }"""
    assert page.page.evaluate(fresh) == "recommended"


def test_the_host_offers_the_blueprint_and_one_click_draws(page: Page, host: Host) -> None:
    offered = [entry["name"] for entry in host.get("/global_subgraphs").values()]
    assert "MoSs Text to Image" in offered
    load(page, BLUEPRINT)
    assert page.page.evaluate(RUN) is None
    graph = sent(page)
    kinds = {node["class_type"] for node in graph.values()}
    assert {"MoSs_LoadInfinity", "MoSs_Refine", "PreviewImage"} <= kinds
    names = page.page.evaluate("() => app.graph.nodes[0].widgets.map((widget) => widget.name)")
    assert {"text", "method", "aspect", "area", "seed"} <= set(names)
    page.page.evaluate("() => app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
    page.wait(1200)
    assert page.inspector("MoSs_TokenDispatch").cost.endswith("of dense")
    page.page.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")


@pytest.mark.parametrize(("method", "tokens"), [("sparse3", 461), ("moss3", 245), ("by budget", 461)])
def test_the_blueprint_draws_by_the_method_that_one_chooses(
    page: Page, host: Host, method: str, tokens: int
) -> None:
    load(page, BLUEPRINT)
    choose = """(method) => {
      const widget = (wanted) => app.graph.nodes[0].widgets.find(({ name }) => name === wanted);
      widget("method").value = method;
      widget("method").callback?.(method);
      widget("budget").value = 0.25;
    }"""
    page.page.evaluate(choose, method)
    assert page.page.evaluate(RUN) is None
    graph = sent(page)
    draft = next(node for node in graph.values() if node["class_type"] == "MoSs_InfinityDraft")
    assert (draft["inputs"]["method"], draft["inputs"]["budget"]) == (method, 0.25)
    composite = next(n for n, node in graph.items() if node["class_type"] == "MoSs_Composite")
    result = host.run({**graph, "told": {"class_type": "MoSs_Report", "inputs": {"latent": [composite, 0]}}})
    lines = dict(line.split("  ", 1) for line in result["outputs"]["told"]["text"][0].splitlines())
    assert lines["refined"].split()[0] == str(tokens)


def test_the_blueprint_is_found_by_searching_text_to_image(page: Page) -> None:
    page.page.evaluate("() => app.loadGraphData({ nodes: [], links: [], version: 0.4 })")
    page.page.mouse.dblclick(500, 450)
    page.wait(800)
    page.page.keyboard.type("text to image", delay=30)
    page.wait(1500)
    assert page.page.get_by_text("MoSs Text to Image").count() >= 1
    page.page.keyboard.press("Escape")


@pytest.mark.parametrize("name", ["09 Infinity-2B", "11 HART-0.7B"])
def test_the_page_says_which_files_a_released_model_misses(page: Page, name: str) -> None:
    load(page, ROOT / "workflows" / f"{name}.json")
    page.wait(2500)
    files = {"09 Infinity-2B": "infinity_2b_reg.pth", "11 HART-0.7B": "ema_model.bin"}
    assert page.page.get_by_text(files[name]).count() >= 1
    page.page.keyboard.press("Escape")


def test_the_app_template_opens_as_an_app(page: Page) -> None:
    load(page, ROOT / "workflows" / "02 Text to image (app).json")
    page.wait(1500)
    assert "Number of runs" in page.page.locator("body").inner_text()
    assert page.page.evaluate("() => app.graph.extra.linearData.inputs.length") >= 5
