"""The inspector in a real ComfyUI's page, in both of its renderers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, chromium, launched, opened
from hosting import Host, checkout, front_end

from comfy_moss.model.backbone import NANO
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.dispatch import band, read_painting

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(
        checkout() is None,
        reason="NO COMFYUI CHECKOUT: THE BROWSER'S PART WAS NOT TESTED; set COMFYUI_PATH to one",
    ),
    pytest.mark.skipif(
        chromium() is None,
        reason="NO CHROMIUM: THE BROWSER'S PART WAS NOT TESTED; install it or set CHROMIUM_PATH",
    ),
]
WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
MAP, DISPATCH = "MoSs_FrequencyMap", "MoSs_TokenDispatch"
BEST = NANO.on(make_schedule(1.0, "0.25M")).best
SELECT_OURS = "() => app.canvas.selectItems(app.graph.nodes.filter(({ type }) => /MoSs_/.test(type)))"
GRAPH = "() => [app.graph.nodes.length, app.canvas.ds.scale, ...app.canvas.ds.offset]"
GREY = 'Boolean(node.widgets.find(({ name }) => name === "values").disabled)'
_AGAIN = """const dispatch = app.graph.nodes.find(({ type }) => type === "MoSs_TokenDispatch");
  const slot = dispatch.inputs.findIndex(({ name }) => name === "frequency");"""
DETOURS = {  # of the wire from the map to its dispatch
    "Reroute": f"""{_AGAIN}
      const way = LiteGraph.createNode("Reroute");
      way.pos = [380, 20];
      app.graph.add(way);
      node.connect(0, way, 0);
      way.connect(0, dispatch, slot);""",
    "native": f"""{_AGAIN}
      app.graph.createReroute([380, 60], dispatch.getInputLink(slot));""",
    "Set and Get": f"""{_AGAIN}
      class Setter extends LiteGraph.LGraphNode {{
        constructor(title) {{
          super(title);
          this.addInput("*", "*");
          this.isVirtualNode = true;
        }}
      }}
      class Getter extends LiteGraph.LGraphNode {{
        constructor(title) {{
          super(title);
          this.addOutput("*", "*");
          this.isVirtualNode = true;
        }}
        getInputLink() {{
          return this.graph.nodes.find(({{ type }}) => type === "test/Setter").getInputLink(0);
        }}
      }}
      LiteGraph.registerNodeType("test/Setter", Setter);
      LiteGraph.registerNodeType("test/Getter", Getter);
      const set = LiteGraph.createNode("test/Setter"), get = LiteGraph.createNode("test/Getter");
      set.pos = [20, 800];
      get.pos = [420, 850];
      app.graph.add(set);
      app.graph.add(get);
      node.connect(0, set, 0);
      get.connect(0, dispatch, slot);""",
    "subgraph": """app.canvas.selectItems([node]);
      app.graph.convertToSubgraph(app.canvas.selectedItems);""",
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def opened_page(request: pytest.FixtureRequest, browser: Any, host: Host) -> Iterator[Page]:
    with opened(browser, host, request.param) as page:
        said = request.config.pluginmanager.get_plugin("terminalreporter")
        source = "MOSS_FRONT_END" if front_end() else "the host's own; for another one set MOSS_FRONT_END"
        said.write_line(f"\nBROWSER TESTS RUN ON FRONT-END {page.version} ({source})")
        yield page


@pytest.fixture
def page(opened_page: Page) -> Iterator[Page]:
    """A fresh graph that has run; afterwards, the page must have met no error."""
    opened_page.errors.clear()
    opened_page.build()
    opened_page.run()
    yield opened_page
    assert opened_page.errors == []


def counts(grids: list[list[int]], bounds: list[float]) -> list[int]:
    """Tokens of each scale, by Python's rule."""
    lower = [*bounds[1:], 0]
    return [len(band(h * w, up, low)) for (h, w), up, low in zip(grids, bounds, lower, strict=True)]


def cost_line(payload: dict[str, Any], tokens: int) -> str:
    work, cache = payload["work"], payload["draft_tokens"]
    row = tokens * (work["linear"] + work["attention"] * (cache + tokens))
    share = (work["draft"] + work["rows"] * row) / work["dense"]
    return f"{tokens:,} tokens · KV {payload['kv_bytes'] / 2**20:#.3g} MiB · {100 * share:.0f} % of dense"


def test_a_report_shows_its_text_on_the_node_and_the_saved_graph_has_none_of_it(opened_page: Page) -> None:
    workflow = json.loads((WORKFLOWS / "06 Every map on screen.json").read_text(encoding="utf-8"))
    opened_page.page.evaluate("async (graph) => { await app.loadGraphData(graph); }", workflow)
    # a front-end may show no elements outside the window
    opened_page.change("MoSs_Report", "app.canvas.ds.scale = 1; app.canvas.centerOnNode(node)")
    opened_page.run()
    texts = " ".join(opened_page.page.locator(".moss-report").all_inner_texts())
    assert "draft-3; -1@45 unguided" in texts and "KV cache" in texts
    saved = opened_page.page.evaluate(
        "() => app.graph.serialize().nodes.find((n) => n.type === 'MoSs_Report')"
    )
    assert not saved.get("widgets_values")


def test_before_the_first_run_there_is_one_quiet_line(opened_page: Page) -> None:
    opened_page.build()
    for kind in (MAP, DISPATCH):
        assert opened_page.inspector(kind).root.inner_text().strip() == "Run the graph to see the map."


@pytest.mark.parametrize("kind", [MAP, DISPATCH])
def test_the_token_under_the_pointer_is_described(page: Page, kind: str) -> None:
    sent, inspector = page.sent(kind), page.inspector(kind)
    grid, grids = sent.payload["map"]["grid"], sent.payload["grids"]
    bounds = page.sent(DISPATCH).payload["pass"]["bounds"]  # of the node behind, also on the map
    for row, column in ((0, 0), (grid[0] - 1, 3), (9, grid[1] - 1), (12, 11)):
        page.point(inspector, row, column, grid)
        text = inspector.reading.replace("\n", " ")
        assert f"Row {row + 1}, col {column + 1} " in text
        read = float(text.split("frequency ")[1].split()[0])
        assert read == pytest.approx(float(sent.frequency[0, row, column]), rel=0.005, abs=1e-12)
        busier = round(100 * int(sent.percentile[0, row, column]) / 255)
        assert f"busier than {min(99, busier)} %" in text
        for n, (h, w) in enumerate(grids):
            rank = sent.ranks[n][0, (2 * row + 1) * h // (2 * grid[0]), (2 * column + 1) * w // (2 * grid[1])]
            redrawn = rank in band(h * w, bounds[n], [*bounds, 0][n + 1])
            assert (f"{w} × {h}" in text) == redrawn
    page.away()
    assert "Row" not in inspector.reading


def test_the_keyboard_moves_the_inspected_token(page: Page) -> None:
    inspector = page.inspector(DISPATCH)
    inspector.root.locator(".moss-picture").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):  # the first shows the middle
        page.page.keyboard.press(key)
    page.wait()  # for the frame
    rows, columns = page.sent(DISPATCH).payload["map"]["grid"]
    assert inspector.reading.startswith(f"Row {rows // 2 + 2}, col {columns // 2 + 2} ")


def test_the_views_show_what_they_are_named_after(page: Page) -> None:
    sent, inspector = page.sent(DISPATCH), page.inspector(DISPATCH)
    grid, payload = sent.payload["map"]["grid"], sent.payload
    assert inspector.pressed() == ["Overlay"] and page.inspector(MAP).pressed() == ["Heatmap"]
    finest = np.argwhere(sent.ranks[-1][0] < payload["pass"]["bounds"][-1] / 100 * grid[0] * grid[1])[0]
    colour = np.array(list(bytes.fromhex(payload["colours"][-1][1:])))
    shown = np.array(inspector.pixel(*finest, grid))  # the colour, between half and fully bright
    assert np.all(shown <= colour + 2) and np.all(shown >= colour / 2 - 2)

    inspector.press("Heatmap")
    assert inspector.pressed() == ["Heatmap"]
    place = int(sent.percentile[(0, *finest)]) / 255 * (len(payload["palette"]) - 1)
    ends = [
        np.array(list(bytes.fromhex(payload["palette"][n][1:]))) for n in (int(place), min(8, int(place) + 1))
    ]
    expected = ends[0] + (ends[1] - ends[0]) * (place - int(place))
    assert np.abs(inspector.pixel(*finest, grid) - expected).max() <= 2

    inspector.press("Image")
    page.wait()
    heat = inspector.pixel(*finest, grid)
    assert np.abs(heat - expected).max() > 20


@pytest.mark.parametrize("kind", [MAP, DISPATCH])
def test_dragging_a_bound_predicts_what_the_next_run_does(page: Page, kind: str) -> None:
    inspector, payload = page.inspector(kind), page.sent(kind).payload
    assert inspector.counts == counts(payload["grids"], page.sent(DISPATCH).payload["pass"]["bounds"])
    page.drag(inspector, 2, -50)  # to the calm side: a higher percentage

    bounds = [float(part) for part in page.widget("values").split(",")]
    assert page.widget("preset") == "custom bounds"
    assert bounds[2] == round(bounds[2]) and 30 < bounds[2] <= 70 and [*bounds[:2], bounds[3]] == [80, 70, 10]
    predicted = counts(payload["grids"], bounds)
    assert inspector.bounds == bounds
    assert inspector.counts == predicted
    assert inspector.cost == cost_line(payload, sum(predicted))

    page.run()
    after = page.sent(DISPATCH)
    assert after.payload["pass"]["bounds"] == bounds
    assert page.inspector(DISPATCH).counts == predicted


def test_a_bound_stops_at_its_neighbours_and_moves_by_keys(page: Page) -> None:
    inspector = page.inspector(DISPATCH)
    page.drag(inspector, 1, 400)
    assert inspector.bounds == [80, 30, 30, 10]
    page.drag(inspector, 0, -400)
    assert inspector.bounds == [100, 30, 30, 10]
    inspector.root.locator(".moss-handle").nth(3).focus()
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "Shift+ArrowDown"):
        page.page.keyboard.press(key)
    page.wait()
    assert page.widget("values") == "100, 30, 30, 10.9"


def test_the_inspector_follows_edits_by_hand(page: Page) -> None:
    inspector = page.inspector(DISPATCH)
    page.set_widget("preset", "custom shares")
    page.set_widget("values", "10, 40, 20, 5")
    assert inspector.bounds == page.inspector(MAP).bounds == [75, 65, 25, 5]
    page.set_widget("values", "10, 40, twenty, 5")
    assert "twenty" in inspector.note and inspector.bounds == [75, 65, 25, 5]
    inspector.press("Reset")
    page.wait()
    assert page.widget("preset") == "method" and inspector.bounds == [*BEST[4]]


def test_without_a_dispatch_node_the_map_has_nothing_to_move(page: Page) -> None:
    page.change(DISPATCH, "node.disconnectInput(0)")
    handles = page.inspector(MAP).root.locator(".moss-handle")
    assert handles.count() == 4 and all(handle.is_disabled() for handle in handles.all())
    assert page.inspector(DISPATCH).root.locator(".moss-handle").first.is_enabled()


def test_painting_predicts_what_the_next_run_does(page: Page) -> None:
    inspector, grid = page.inspector(DISPATCH), page.sent(DISPATCH).payload["map"]["grid"]
    inspector.press("Paint")
    page.point(inspector, 28, 4, grid)
    page.page.mouse.down()
    page.point(inspector, 28, 20, grid)
    page.page.mouse.up()
    page.away()
    painted = read_painting(page.widget("painting"))[0]
    assert painted[27:30, 4:21].all() and not painted[:26].any()

    before = page.sent(DISPATCH)
    told = {
        "frequency": before.frequency[0].ravel().tolist(),
        "ranks": [ranks[0].tolist() for ranks in before.ranks],
        "grid": grid, "cells": painted.int().ravel().tolist(), "grids": before.payload["grids"],
        "open": before.payload["open"],
    }
    code = """module.rankTokens(
        { final: value.grid, grids: value.grids, open: value.open },
        { frequency: Float32Array.from(value.frequency), ranks: value.ranks.map((rows) => rows.flat()) },
        { grid: value.grid, cells: value.cells },
    ).map((ranks) => [...ranks])"""
    predicted = page.module("ranks", code, told)
    page.run()
    after = page.sent(DISPATCH)
    assert [ranks[0].ravel().tolist() for ranks in after.ranks] == predicted
    assert after.ranks[-1][0][27:30, 4:21].max() < before.ranks[-1][0][27:30, 4:21].max()
    assert after.ranks[-1][0][27:30, 4:21].max() < painted.sum()

    inspector.press("Clear")
    page.wait()
    assert page.widget("painting") == ""


def mask_with_its_own_inverse(page: Page) -> None:
    """Connect a mask to MoSs Token Dispatch in which what is calm comes first."""
    page.change(
        DISPATCH,
        """const map = app.graph.nodes.find(({ type }) => type === "MoSs_FrequencyMap");
        const invert = LiteGraph.createNode("InvertMask");
        invert.pos = [-400, 600];
        app.graph.add(invert);
        map.connect(2, invert, 0);
        invert.connect(0, node, node.inputs.findIndex(({ name }) => name === "mask"))""",
    )


def test_with_a_mask_the_ranks_are_those_of_the_run(page: Page) -> None:
    mask_with_its_own_inverse(page)
    page.run()
    sent, inspector = page.sent(DISPATCH), page.inspector(DISPATCH)
    grid, finest = sent.payload["map"]["grid"], sent.ranks[-1][0]
    # in the finest scale because of the mask alone
    calm = np.argwhere((finest < 50) & (sent.percentile[0] < 80))[0]
    page.point(inspector, *calm, grid)
    assert f"Redrawn at {grid[1]} × {grid[0]}" in " ".join(inspector.reading.split("\n"))


def test_undo_and_redo_restore_widgets_and_inspector(page: Page) -> None:
    page.away()
    # the host notes that Preview Image has grown, so that redo is not lost to that
    page.wait(1500)
    page.page.mouse.click(1150, 650)
    page.wait()
    page.drag(page.inspector(DISPATCH), 3, -30)
    moved = page.widget("values")
    assert moved != "80, 70, 30, 10"
    page.page.keyboard.press("Control+z")
    page.until("values", "80, 70, 30, 10")
    inspector = page.inspector(DISPATCH)
    assert (page.widget("preset"), page.widget("values")) == ("paper", "80, 70, 30, 10")
    assert inspector.bounds == [80, 70, 30, 10]
    page.page.keyboard.press("Control+y")
    page.until("values", moved)
    inspector = page.inspector(DISPATCH)
    assert page.widget("values") == moved and inspector.bounds == [float(part) for part in moved.split(",")]


def test_a_saved_workflow_keeps_widgets_and_size_but_not_the_map(page: Page) -> None:
    page.change(MAP, "node.setSize([360, 700])")
    page.drag(page.inspector(DISPATCH), 3, -30)
    values = page.widget("values")
    saved = page.page.evaluate("() => app.graph.serialize()")
    kept = {node["type"]: node for node in saved["nodes"]}
    assert kept[MAP]["widgets_values"] == [3] and kept[MAP]["size"] == [360, 700]
    assert kept[DISPATCH]["widgets_values"] == ["custom bounds", values, "", "all"]
    assert "base64" not in str(saved) and len(str(saved)) < 30_000
    prompt = page.page.evaluate("async () => (await app.graphToPrompt()).output")
    sent = next(node["inputs"] for node in prompt.values() if node["class_type"] == DISPATCH)
    assert set(sent) == {"frequency", "preset", "values", "painting", "scales"}

    page.page.evaluate("async (saved) => { await app.loadGraphData(saved); }", saved)
    page.wait(800)
    assert "Run the graph" in page.inspector(DISPATCH).root.inner_text()
    page.run()  # nothing has changed, so that the host sends again what it has in its cache
    assert page.inspector(DISPATCH).bounds == [float(part) for part in values.split(",")]
    assert page.node(MAP, "[...node.size]") == [360, 700]


def test_a_pasted_node_is_independent(page: Page) -> None:
    page.page.evaluate(
        """() => {
          app.canvas.selectItems([app.graph.nodes.find(({ type }) => type === "MoSs_TokenDispatch")]);
          app.canvas.copyToClipboard();
          app.canvas.graph_mouse = [820, 20];
          app.canvas.pasteFromClipboard();
        }"""
    )
    page.wait(500)
    assert page.page.locator(".moss-inspector").count() == 3
    page.drag(page.inspector(DISPATCH), 3, -30)
    values = page.page.evaluate(
        """() => app.graph.nodes.filter(({ type }) => type === "MoSs_TokenDispatch")
            .sort((a, b) => a.id - b.id).map((node) => node.widgets[1].value)"""
    )
    assert len(values) == 2 and values[1] == "80, 70, 30, 10" != values[0]


def test_nodes_in_a_subgraph_show_their_run(page: Page) -> None:
    tokens = sum(page.inspector(DISPATCH).counts)
    page.page.evaluate(
        """() => {
          const kinds = ["MoSs_FrequencyMap", "MoSs_TokenDispatch"];
          app.canvas.selectItems(app.graph.nodes.filter(({ type }) => kinds.includes(type)));
          const { node } = app.graph.convertToSubgraph(app.canvas.selectedItems);
          window.moss_subgraph = node;
        }"""
    )
    page.wait(500)
    page.run()
    page.page.evaluate("() => app.canvas.openSubgraph(moss_subgraph.subgraph, moss_subgraph)")
    page.wait(1200)
    inspector = page.inspector(DISPATCH)
    assert inspector.cost.startswith(f"{tokens:,} tokens")
    page.drag(inspector, 3, -20)
    assert page.widget("preset") == "custom bounds" and inspector.bounds[3] > 10
    page.page.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")


def test_removed_nodes_take_their_inspectors_along(page: Page) -> None:
    for kind in (MAP, DISPATCH):
        page.change(kind, "node.graph.remove(node)")
    page.wait(500)
    assert page.page.locator(".moss-inspector").count() == 0


def test_switching_the_renderer_keeps_the_map(page: Page) -> None:
    before = page.page.evaluate("() => app.extensionManager.setting.get('Comfy.VueNodes.Enabled')")
    tokens = page.inspector(DISPATCH).cost
    for enabled in (not before, before):
        page.page.evaluate(
            "async (on) => { await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on); }", enabled
        )
        page.wait(1500)
        inspector = page.inspector(DISPATCH)
        assert inspector.cost == tokens
        box = inspector.root.locator(".moss-picture").bounding_box()
        assert box["width"] == pytest.approx(box["height"], rel=0.01) and box["width"] > 150


def test_pictures_of_a_batch_can_be_leafed_through(opened_page: Page) -> None:
    opened_page.build(batch=2)
    opened_page.run()
    inspector, sent = opened_page.inspector(DISPATCH), opened_page.sent(DISPATCH)
    grid = sent.payload["map"]["grid"]
    row, column = np.argwhere(np.abs(np.subtract(*sent.frequency.astype(float))) > 1e-3)[0]
    for picture in (0, 1, 0):
        opened_page.point(inspector, row, column, grid)
        read = float(inspector.reading.split("frequency ")[1].split()[0])
        assert read == pytest.approx(float(sent.frequency[picture, row, column]), rel=0.005)
        assert inspector.root.locator(".moss-batch span").inner_text() == f"{picture + 1}/2"
        inspector.press("Next picture")


def test_the_wheel_over_the_inspector_zooms_the_graph(page: Page) -> None:
    page.point(page.inspector(DISPATCH), 5, 5, [32, 32])
    page.page.mouse.wheel(0, -240)
    page.wait(400)
    assert page.page.evaluate("() => app.canvas.ds.scale") > 1


def link(page: Page, source: str, kind: str, name: str, settings: str = "{}") -> None:
    """Wire a new node's first output into an input of the first node of a kind."""
    page.change(
        kind,
        f"""const other = LiteGraph.createNode({source!r});
        other.pos = [-400, 640];
        node.graph.add(other);
        other.connect(0, node, node.inputs.findIndex(({{ name }}) => name === {name!r}));
        for (const [key, value] of Object.entries({settings})) {{
          const widget = other.widgets.find((each) => each.name === key);
          widget.value = value;
          widget.callback?.(value);
        }}""",
    )


@pytest.mark.parametrize("key", ["Delete", "Backspace", "q", ".", "Escape"])
def test_keys_pressed_on_a_handle_stay_in_the_inspector(page: Page, key: str) -> None:
    page.page.evaluate(SELECT_OURS)
    before = page.page.evaluate(GRAPH)
    for part in (".moss-handle", ".moss-picture", ".moss-views button"):
        page.inspector(DISPATCH).root.locator(part).first.focus()
        page.page.keyboard.press(key)
    page.wait(400)
    assert page.page.evaluate(GRAPH) == before


def test_the_inspector_is_as_wide_as_its_node_after_the_panel_was_open(page: Page) -> None:
    page.page.evaluate(SELECT_OURS)
    page.set("Comfy.RightSidePanel.IsOpen", True)
    page.change(DISPATCH, "app.canvas.selectItems([node])")
    page.wait(800)
    panel = page.page.locator("body").inner_text()
    assert "moss_inspector" not in panel and "Map (on the node)" in panel
    page.set("Comfy.RightSidePanel.IsOpen", False)
    for width in (300, 420):
        for kind in (MAP, DISPATCH):
            page.change(kind, f"node.setSize([{width}, node.size[1]]); app.canvas.setDirty(true, true)")
        page.wait(600)
        for kind in (MAP, DISPATCH):
            box = page.inspector(kind).root.bounding_box()
            assert width - 40 <= box["width"] <= width, (kind, width, box)


def test_a_narrow_node_cuts_nothing_off(page: Page) -> None:
    narrow = "node.setSize([200, node.size[1]]); node.setSize(node.computeSize())"
    page.change(DISPATCH, f"{narrow}; app.canvas.setDirty(true, true)")
    page.wait(600)
    for kind in (MAP, DISPATCH):
        inspector = page.inspector(kind)
        for part in (".moss-bar", ".moss-read", ".moss-histogram", ".moss-foot"):
            cut = inspector.root.locator(part).evaluate("(part) => part.scrollWidth - part.clientWidth")
            assert cut <= 0, (kind, part)
        assert inspector.root.bounding_box()["width"] >= 225 - 40


@pytest.mark.parametrize("k", [1, 2, 8])
def test_the_legend_names_every_scale(opened_page: Page, k: int) -> None:
    opened_page.build()
    opened_page.draft_widget("refine_scales", k)
    opened_page.set_widget("preset", "custom bounds")
    opened_page.set_widget("values", ", ".join(str(10 * n + 5) for n in reversed(range(k))))
    opened_page.run()
    inspector, payload = opened_page.inspector(DISPATCH), opened_page.sent(DISPATCH).payload
    opened_page.away()
    assert len(inspector.counts) == k
    assert inspector.counts == counts(payload["grids"], payload["pass"]["bounds"])
    outer, swatches = inspector.root.bounding_box(), inspector.root.locator(".moss-legend .moss-scale").all()
    reading = inspector.root.locator(".moss-read").bounding_box()
    for each in (swatch.bounding_box() for swatch in swatches):
        assert each["x"] + each["width"] <= outer["x"] + outer["width"]
        assert each["y"] + each["height"] <= reading["y"] + reading["height"] + 1


def test_values_hold_the_bounds_in_use_and_are_grey_while_they_are_not_their_own(page: Page) -> None:
    best = ", ".join(f"{bound:g}" for bound in BEST[4])
    assert page.widget("values") == "80, 70, 30, 10" and page.node(DISPATCH, GREY)
    page.set_widget("preset", "automatic")
    assert page.widget("values") == best and page.node(DISPATCH, GREY)
    page.drag(page.inspector(DISPATCH), 3, 20)
    assert page.widget("preset") == "custom bounds" and not page.node(DISPATCH, GREY)
    page.inspector(DISPATCH).press("Reset")
    page.wait()
    assert page.widget("values") == best and page.node(DISPATCH, GREY)


def test_automatic_bounds_are_those_found_on_the_pictures_own_scales(page: Page) -> None:
    own = NANO.on(make_schedule(1.0, "1M")).best[4]
    assert own != BEST[4]
    page.set_widget("preset", "automatic")
    page.draft_widget("area", "1M")
    page.run()
    assert page.inspector(DISPATCH).bounds == page.inspector(MAP).bounds == [*own]
    assert page.widget("values") == ", ".join(f"{bound:g}" for bound in own)
    page.draft_widget("area", "0.25M")
    page.run()
    assert page.inspector(DISPATCH).bounds == [*BEST[4]]


def test_a_budget_chooses_the_plan_and_its_number_shows_only_then(page: Page) -> None:
    hidden = "node.widgets.filter(({ hidden }) => hidden).map(({ name }) => name)"
    assert page.node("MoSs_InfinityDraft", hidden) == ["budget", "seconds"]
    page.draft_widget("method", "by budget")
    page.wait()
    assert page.node("MoSs_InfinityDraft", hidden) == ["seconds"]
    page.run()
    used = page.page.locator(".moss-used").first.inner_text()
    assert NANO.plans["sparse3"] in used and "% of the plain model" in used
    page.draft_widget("method", "recommended")
    page.wait()
    assert page.node("MoSs_InfinityDraft", hidden) == ["budget", "seconds"]


def test_another_number_of_scales_takes_the_same_sharing_out(page: Page) -> None:
    page.set_widget("preset", "custom bounds")
    page.draft_widget("refine_scales", 2)
    assert page.widget("values") == "80, 30"
    inspector = page.inspector(DISPATCH)
    assert "2 scales" in inspector.note and inspector.locked  # of another draft, this page cannot know
    page.run()
    assert page.sent(DISPATCH).payload["pass"] == {"scales": [-2, -1], "bounds": [80, 30]}
    assert inspector.bounds == [80, 30] and not inspector.locked and not inspector.note
    page.set_widget("preset", "paper")
    assert page.widget("values") == "50, 25"
    page.draft_widget("refine_scales", 5)
    page.run()
    assert page.widget("values") == "90, 50, 15, 10, 5"


def test_a_pass_of_some_scales_is_shown_on_the_map_too(page: Page) -> None:
    page.set_widget("scales", "-3, -1")
    page.set_widget("preset", "custom bounds")
    page.set_widget("values", "70, 20")
    grids = page.sent(MAP).payload["grids"]
    for _ in range(2):  # before and after the run
        for kind in (MAP, DISPATCH):
            inspector = page.inspector(kind)
            assert inspector.bounds == [70, 20] and not inspector.locked
            assert inspector.counts == counts([grids[1], grids[3]], [70, 20])
        page.run()
    assert page.sent(DISPATCH).payload["pass"] == {"scales": [-3, -1], "bounds": [70, 20]}
    page.set_widget("scales", "-9")
    assert "-9" in page.inspector(MAP).note


def test_linked_values_show_the_run_and_lock_the_handles_visibly(page: Page) -> None:
    page.set_widget("preset", "custom bounds")
    link(page, "PrimitiveString", DISPATCH, "values", '{ value: "70, 40, 20, 10" }')
    page.run()
    for kind in (MAP, DISPATCH):
        inspector = page.inspector(kind)
        assert inspector.bounds == [70, 40, 20, 10]
        assert inspector.locked and "connected input" in inspector.note
        assert page.widget("values") == "70, 40, 20, 10"
        handle = inspector.root.locator(".moss-handle").first
        assert handle.evaluate("(it) => getComputedStyle(it).cursor") == "not-allowed"


def test_a_mask_counts_on_the_map_too(page: Page) -> None:
    mask_with_its_own_inverse(page)
    assert "mask" in page.inspector(MAP).note  # not run yet
    page.run()
    sent = page.sent(DISPATCH)
    grid, finest = sent.payload["map"]["grid"], sent.ranks[-1][0]
    calm = np.argwhere((finest < 50) & (sent.percentile[0] < 80))[0]
    for kind in (MAP, DISPATCH):
        page.point(page.inspector(kind), *calm, grid)
        assert f"Redrawn at {grid[1]} × {grid[0]}" in page.inspector(kind).reading.replace("\n", " ")
        assert not page.inspector(kind).note


@pytest.mark.parametrize("way", ["Reroute", "native", "Set and Get", "subgraph"])
def test_the_map_finds_its_dispatch_by_every_way(page: Page, way: str) -> None:
    page.change(MAP, DETOURS[way])
    page.wait(500)
    page.set_widget("preset", "custom bounds")
    page.set_widget("values", "70, 40, 20, 10")
    page.wait(300)
    inspector = page.inspector(MAP)
    assert inspector.bounds == [70, 40, 20, 10] and not inspector.locked
    page.run()
    assert inspector.bounds == [70, 40, 20, 10]


def test_a_bypassed_dispatch_is_not_the_maps(page: Page) -> None:
    page.set_widget("preset", "custom bounds")
    page.set_widget("values", "70, 40, 20, 10")
    page.change(DISPATCH, "node.mode = 4; node.onConnectionsChange?.()")
    inspector = page.inspector(MAP)
    assert inspector.bounds == [*BEST[4]] and inspector.locked
    assert "No MoSs Token Dispatch" in inspector.note


def test_why_a_run_stopped_is_repeated_in_the_inspector(page: Page) -> None:
    page.set_widget("preset", "custom bounds")
    page.set_widget("values", "10, 40, 20, 10")
    with pytest.raises(RuntimeError) as error:
        page.run()
    sentence = str(error.value).strip()
    assert page.inspector(DISPATCH).note == sentence and page.inspector(MAP).note != sentence
    page.set_widget("values", "40, 30, 20, 10")
    page.run()
    assert page.inspector(DISPATCH).note == ""


def test_rebuilt_nodes_show_their_own_map(page: Page) -> None:
    page.inspector(DISPATCH).press("Paint")
    kept = page.page.evaluate("() => app.graph.serialize()")
    page.page.evaluate("(saved) => { app.graph.clear(); app.graph.configure(saved); }", kept)
    page.wait(600)
    assert page.page.locator(".moss-inspector").count() == 2
    assert "Run the graph" in page.inspector(DISPATCH).root.inner_text()
    page.page.evaluate("async (saved) => { await app.loadGraphData(saved); }", kept)
    page.wait(800)
    inspector = page.inspector(DISPATCH)
    assert "Run the graph" in inspector.root.inner_text()
    page.run()
    assert not inspector.painting


def test_undo_keeps_the_brush_in_the_hand(page: Page) -> None:
    inspector, grid = page.inspector(DISPATCH), page.sent(DISPATCH).payload["map"]["grid"]
    page.page.mouse.click(1150, 650)
    page.wait()
    inspector.press("Paint")
    page.point(inspector, 28, 4, grid)
    page.page.mouse.down()
    page.point(inspector, 28, 20, grid)
    page.page.mouse.up()
    page.away()
    assert page.widget("painting")
    page.page.keyboard.press("Control+z")
    page.until("painting", "")
    inspector = page.inspector(DISPATCH)
    assert page.widget("painting") == ""
    assert inspector.painting and "Drag to paint" in inspector.reading


def test_drafts_are_picked_on_their_sheet(opened_page: Page) -> None:
    opened_page.build(batch=4)
    opened_page.change(
        "MoSs_InfinityDraft",
        """const sheet = LiteGraph.createNode("MoSs_PickDrafts");
        sheet.pos = [-800, 480];  // below all others: none lies over its cards
        app.graph.add(sheet);
        const map = app.graph.nodes.find(({ type }) => type === "MoSs_FrequencyMap");
        node.connect(0, sheet, 0);
        sheet.connect(0, map, 0);
        app.canvas.ds.offset = [860, -420];
        app.canvas.setDirty(true, true);""",
    )
    opened_page.run()
    opened_page.wait(500)
    cards = opened_page.page.locator(".moss-card")

    def picked() -> list[int]:
        return [n for n, card in enumerate(cards.all()) if card.get_attribute("aria-pressed") == "true"]

    assert cards.count() == 4 and picked() == [0]
    assert all(image.evaluate("(it) => it.naturalWidth") > 0 for image in cards.locator("img").all())
    cards.nth(2).click()
    cards.nth(1).click(modifiers=["Shift"])
    assert picked() == [1, 2]
    assert opened_page.node("MoSs_PickDrafts", "node.widgets[0].value") == "2, 3"
    opened_page.run()
    assert len(opened_page.sent(MAP).payload["pictures"]) == 2
    opened_page.change("MoSs_PickDrafts", "node.widgets[0].value = '9'")
    with pytest.raises(RuntimeError) as error:
        opened_page.run()
    assert opened_page.page.locator(".moss-sheet .moss-hint").inner_text() == str(error.value).strip()


def test_a_warning_is_said_in_the_page(opened_page: Page) -> None:
    opened_page.build()
    opened_page.change("CLIPTextEncode", 'node.widgets[0].value = "a (red:1.2) square"')
    opened_page.run()
    toast = opened_page.page.locator(".p-toast-message, [data-sonner-toast], [role=alert], [role=status]")
    assert any("(red:1.2)" in text for text in toast.all_inner_texts())
