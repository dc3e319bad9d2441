"""The inspector in a real ComfyUI's page, in both of its renderers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, chromium, opened
from hosting import Host, checkout

from comfy_moss.model.backbone import NANO
from comfy_moss.pipeline.dispatch import band, bounds_of_shares, read_painting

playwright = pytest.importorskip(
    "playwright.sync_api", reason="NO PLAYWRIGHT: THE BROWSER'S PART WAS NOT TESTED; pip install playwright"
)
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


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def opened_page(request: pytest.FixtureRequest, browser: Any, host: Host) -> Iterator[Page]:
    with opened(browser, host, request.param) as page:
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
    share = (work["draft"] + tokens * (work["linear"] + work["attention"] * (cache + tokens))) / work["dense"]
    return f"{tokens:,} tokens · KV {payload['kv_bytes'] / 2**20:#.3g} MiB · {100 * share:.0f} % of dense"


def random_bounds(rng: random.Random) -> list[float]:
    digits = rng.choice([0, 1, 3])
    return sorted((round(rng.uniform(0, 100), digits) for _ in range(rng.randint(1, 7))), reverse=True)


def test_a_report_shows_its_text_on_the_node_and_the_saved_graph_has_none_of_it(opened_page: Page) -> None:
    workflow = json.loads((WORKFLOWS / "moss4_text_to_image.json").read_text(encoding="utf-8"))
    opened_page.page.evaluate("async (graph) => { await app.loadGraphData(graph); }", workflow)
    opened_page.run()
    text = opened_page.page.locator(".moss-report").first
    assert "moss4" in text.inner_text() and "KV cache" in text.inner_text()
    saved = opened_page.page.evaluate(
        "() => app.graph.serialize().nodes.find((n) => n.type === 'MoSs_Report')"
    )
    assert not saved.get("widgets_values")


def test_bands_round_as_in_python(opened_page: Page) -> None:
    rng = random.Random(5)
    cases = [[rng.randint(1, 9000), random_bounds(rng)] for _ in range(3000)]
    # halves
    cases += [[n, [t, t / 2]] for n in (1, 2, 8, 1000, 4096) for t in (0, 0.05, 12.5, 50, 99.95, 100)]
    code = "value.map(([tokens, bounds]) => bounds.map((t, i) => module.band(tokens, t, bounds[i + 1] ?? 0)))"
    found = opened_page.module("dispatch", code, cases)
    for (tokens, bounds), ranges in zip(cases, found, strict=True):
        ours = [band(tokens, up, low) for up, low in zip(bounds, [*bounds[1:], 0], strict=True)]
        assert ranges == [{"start": r.start, "stop": max(r.start, r.stop)} for r in ours], (tokens, bounds)


def test_shares_mean_the_same_bounds_as_in_python(opened_page: Page) -> None:
    rng = random.Random(6)
    cases = [[round(rng.uniform(0, 100 / 5), 1) for _ in range(rng.randint(1, 5))] for _ in range(300)]
    found = opened_page.module("dispatch", "value.map(module.boundsFromShares)", cases)
    for shares, bounds in zip(cases, found, strict=True):
        assert bounds == pytest.approx(bounds_of_shares(shares), abs=1e-9)


@pytest.mark.parametrize(
    ("preset", "values", "bounds"),
    [
        ("automatic", "anything", [90, 30, 5, 1]),
        ("paper", "anything", [80, 70, 30, 10]),
        ("custom bounds", "60; 50.5%, 20,0", [60, 50.5, 20, 0]),
        ("custom shares", "10, 40, 20, 10", [80, 70, 30, 10]),
        ("custom bounds", "60 50 20 10", None),
        ("custom bounds", "60, 50, 20", None),
        ("custom bounds", "50, 60, 20, 10", None),
        ("custom bounds", "101, 60, 20, 10", None),
        ("custom bounds", "60, 50, 20, 0x1", None),
        ("custom bounds", "60, 50, 20,", None),
        ("custom shares", "60, 50, 20, 10", None),
        ("custom shares", "60, -1, 20, 10", None),
    ],
)
def test_widgets_are_read_as_the_node_reads_them(
    opened_page: Page, preset: str, values: str, bounds: list[float] | None
) -> None:
    known = {"automatic": [90, 30, 5, 1], "paper": [80, 70, 30, 10]}
    found = opened_page.module("dispatch", "module.resolveBounds(...value)", [preset, values, 4, known])
    assert found.get("bounds") == bounds
    assert bool(found.get("problem")) == (bounds is None)


@pytest.mark.parametrize("paper", [[80, 55], None])
def test_the_papers_bounds_are_those_that_the_node_sends_for_its_model(
    opened_page: Page, paper: list[float] | None
) -> None:
    found = opened_page.module(
        "dispatch", 'module.resolveBounds("paper", "1, 2", 2, value)', {"paper": paper}
    )
    assert found.get("bounds") == paper
    assert bool(found.get("problem")) == (paper is None)


def test_before_the_first_run_there_is_one_quiet_line(opened_page: Page) -> None:
    opened_page.build()
    for kind in (MAP, DISPATCH):
        assert opened_page.inspector(kind).root.inner_text().strip() == "Run the graph to see the map."


@pytest.mark.parametrize("kind", [MAP, DISPATCH])
def test_the_token_under_the_pointer_is_described(page: Page, kind: str) -> None:
    sent, inspector = page.sent(kind), page.inspector(kind)
    grid, grids = sent.payload["map"]["grid"], sent.payload["grids"]
    bounds = page.sent(DISPATCH).payload["bounds"]  # of the node behind, also on the map
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
    rows, columns = page.sent(DISPATCH).payload["map"]["grid"]
    assert inspector.reading.startswith(f"Row {rows // 2 + 2}, col {columns // 2 + 2} ")


def test_the_views_show_what_they_are_named_after(page: Page) -> None:
    sent, inspector = page.sent(DISPATCH), page.inspector(DISPATCH)
    grid, payload = sent.payload["map"]["grid"], sent.payload
    assert inspector.pressed() == ["Overlay"] and page.inspector(MAP).pressed() == ["Heatmap"]
    finest = np.argwhere(sent.ranks[-1][0] < payload["bounds"][-1] / 100 * grid[0] * grid[1])[0]
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
    assert inspector.counts == counts(payload["grids"], page.sent(DISPATCH).payload["bounds"])
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
    assert after.payload["bounds"] == bounds
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
    assert "twenty" in inspector.reading and inspector.bounds == [75, 65, 25, 5]
    inspector.press("Reset")
    page.wait()
    assert page.widget("preset") == "automatic" and inspector.bounds == [*NANO.best[4]]


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
    told = {"frequency": before.frequency[0].ravel().tolist(), "grid": grid, "grids": before.payload["grids"]}
    code = """module.rankTokens(
        Float32Array.from(value.frequency), value.grid, value.grids, { grid: value.grid, cells: value.cells }
    ).map((ranks) => [...ranks])"""
    predicted = page.module("ranks", code, {**told, "cells": painted.int().ravel().tolist()})
    page.run()
    after = page.sent(DISPATCH)
    assert [ranks[0].ravel().tolist() for ranks in after.ranks] == predicted
    assert after.ranks[-1][0][27:30, 4:21].max() < before.ranks[-1][0][27:30, 4:21].max()
    assert after.ranks[-1][0][27:30, 4:21].max() < painted.sum()

    inspector.press("Clear")
    page.wait()
    assert page.widget("painting") == ""


def test_with_a_mask_the_ranks_are_those_of_the_run(page: Page) -> None:
    page.change(
        DISPATCH,
        """const map = app.graph.nodes.find(({ type }) => type === "MoSs_FrequencyMap");
        const invert = LiteGraph.createNode("InvertMask");
        invert.pos = [-400, 600];
        app.graph.add(invert);
        map.connect(2, invert, 0);
        invert.connect(0, node, node.inputs.findIndex(({ name }) => name === "mask"))""",
    )
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
