"""ComfyUI's page in a headless browser, with one graph of this pack, for the tests marked `browser`."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hosting import PACK, Host

MODULES = f"/extensions/{PACK}"
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.Workflow.Persist": False, "Comfy.Graph.CanvasInfo": False,
}
NODE = "LiteGraph.registered_node_types.MoSs_TokenDispatch"
READY = f"Boolean(window.app?.extensionManager && app.canvas && {NODE})"
BUILD = """async (batch) => {
  const empty = { nodes: [], links: [], groups: [], version: 0.4, last_node_id: 0, last_link_id: 0 };
  await app.loadGraphData(empty);
  const make = (type, x, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, 20];
    app.graph.add(node);
    const widget = (name) => node.widgets.find((w) => w.name === name);
    for (const [name, value] of Object.entries(values)) widget(name).value = value;
    return node;
  };
  const load = make("MoSs_LoadInfinity", -800);
  const text = make("CLIPTextEncode", -1100, { text: "a red square left of a blue circle" });
  const settings = { seed: 3, control_after_generate: "fixed", batch_size: batch, preview: false,
    method: "custom", refine_scales: 4 };
  const draft = make("MoSs_InfinityDraft", -400, settings);
  const map = make("MoSs_FrequencyMap", 20), dispatch = make("MoSs_TokenDispatch", 420, { preset: "paper" });
  const show = make("PreviewImage", 820);
  load.connect(0, draft, 0); load.connect(1, text, 0); text.connect(0, draft, 1);
  draft.connect(0, map, 0); map.connect(0, dispatch, 0); dispatch.connect(1, show, 0);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [80, 90];
  app.canvas.setDirty(true, true);
}"""
RUN = """() => new Promise((resolve) => {
  const stop = new AbortController();
  const done = (error) => { stop.abort(); setTimeout(() => resolve(error), 300); };
  const options = { signal: stop.signal };
  app.api.addEventListener("execution_success", () => done(null), options);
  app.api.addEventListener("execution_error", ({ detail }) => done(detail.exception_message), options);
  app.queuePrompt(0);
})"""


def chromium() -> str | None:
    """The browser: CHROMIUM_PATH, or one that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, names)), None)


@dataclass(frozen=True)
class Sent:
    """What the server sent to the inspector, decoded.

    Attributes:
        payload: as it came.
        frequency: (B, H, W) float32.
        percentile: (B, H, W) uint8.
        ranks: per refine scale (B, h, w) uint16.
    """

    payload: dict[str, Any]
    frequency: np.ndarray
    percentile: np.ndarray
    ranks: list[np.ndarray]

    @classmethod
    def read(cls, payload: dict[str, Any]) -> Sent:
        def array(texts: list[str], dtype: str, grid: list[int]) -> np.ndarray:
            return np.stack([np.frombuffer(base64.b64decode(text), dtype).reshape(grid) for text in texts])

        sent, grids = payload["map"], payload["grids"]
        ranks = [
            array([picture[n] for picture in payload["ranks"]], "<u2", grid) for n, grid in enumerate(grids)
        ]
        grid = sent["grid"]
        return cls(
            payload, array(sent["frequency"], "<f4", grid), array(sent["percentile"], "u1", grid), ranks
        )


class Inspector:
    """The inspector of one node, as a person sees it."""

    def __init__(self, root: Any) -> None:
        self.root = root

    @property
    def reading(self) -> str:
        """The lines about a token, or the legend."""
        return self.root.locator(".moss-read").inner_text()

    @property
    def note(self) -> str:
        """What is not as one would think; "" = nothing."""
        note = self.root.locator(".moss-notice")
        return note.inner_text().strip() if note.is_visible() else ""

    @property
    def locked(self) -> bool:
        """Whether no bound can be moved."""
        return all(handle.is_disabled() for handle in self.root.locator(".moss-handle").all())

    @property
    def cost(self) -> str:
        return self.root.locator(".moss-foot span").inner_text()

    @property
    def bounds(self) -> list[float]:
        """The percentages on the handles, coarsest scale first."""
        return [float(text.removesuffix("%")) for text in self.root.locator(".moss-handle").all_inner_texts()]

    @property
    def counts(self) -> list[int]:
        """Tokens of each scale, from the legend."""
        scales = self.root.locator(".moss-scale").all_inner_texts()
        return [int(text.split(": ")[1].replace(",", "")) for text in scales if ": " in text]

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name, exact=True).click()

    @property
    def painting(self) -> bool:
        """Whether the brush is in the hand."""
        brush = self.root.get_by_role("button", name="Paint", exact=True)
        return brush.get_attribute("aria-pressed") == "true"

    def pressed(self) -> list[str]:
        return self.root.locator('.moss-views [aria-pressed="true"]').all_inner_texts()

    def pixel(self, row: int, column: int, grid: list[int]) -> list[int]:
        """Red, green and blue in the middle of a cell of the picture as it is painted."""
        place = [(column + 0.5) / grid[1], (row + 0.5) / grid[0]]
        code = """(canvas, [x, y]) => [...canvas.getContext("2d").getImageData(
            Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data].slice(0, 3)"""
        return self.root.locator(".moss-picture canvas").evaluate(code, place)


class Page:
    """The page with the graph load, text, draft, MoSs Frequency Map, MoSs Token Dispatch, Preview Image."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._overhear)

    def _overhear(self, message: Any) -> None:
        """The host catches what its listeners throw, and only writes it down."""
        if message.type in ("error", "warning") and f"{MODULES}/" in message.text:
            self.errors.append(message.text)

    @property
    def version(self) -> str:
        """Of the front-end."""
        return self.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__")

    def away(self) -> None:
        """Move the pointer to a place where there is nothing."""
        self.page.mouse.move(1150, 650)
        self.wait()

    def build(self, batch: int = 1) -> None:
        """Begin again with a new graph."""
        self.away()
        self.page.evaluate(BUILD, batch)
        self.page.wait_for_timeout(500)

    def run(self) -> None:
        """Run the graph to its end.

        Raises:
            RuntimeError: a node failed.
        """
        error = self.page.evaluate(RUN)
        if error:
            raise RuntimeError(error)

    def wait(self, milliseconds: int = 200) -> None:
        self.page.wait_for_timeout(milliseconds)

    def until(self, name: str, value: str) -> None:
        """Wait for a value of a widget of Token Dispatch, ten seconds at most, and a little more for what
        follows from it.
        """
        for _ in range(50):
            if self.widget(name) == value:
                break
            self.wait()
        self.wait(500)

    def node(self, kind: str, code: str) -> Any:
        """The value of an expression about `node`, the first node of a kind, also in subgraphs."""
        find = "[app.graph, ...(app.graph.subgraphs?.values() ?? [])].flatMap((graph) => graph.nodes)"
        return self.page.evaluate(
            f'() => {{ const node = {find}.find(({{ type }}) => type === "{kind}"); return {code}; }}'
        )

    def widget(self, name: str) -> Any:
        """The value of a widget of MoSs Token Dispatch."""
        return self.node("MoSs_TokenDispatch", f'node.widgets.find(({{ name }}) => name === "{name}").value')

    def change(self, kind: str, code: str) -> None:
        """Run statements about `node`, the first node of a kind."""
        self.node(kind, f"(() => {{ {code}; }})()")
        self.wait()

    def set_widget(self, name: str, value: str) -> None:
        """Change a widget of MoSs Token Dispatch as an edit by hand does."""
        find = f'const widget = node.widgets.find(({{ name }}) => name === "{name}")'
        self.change("MoSs_TokenDispatch", f"{find}; widget.value = {value!r}; widget.callback?.({value!r})")

    def draft_widget(self, name: str, value: Any) -> None:
        """Change a widget of the draft as an edit by hand does."""
        find = f'const widget = node.widgets.find(({{ name }}) => name === "{name}")'
        self.change("MoSs_InfinityDraft", f"{find}; widget.value = {value!r}; widget.callback?.({value!r})")

    def set(self, setting: str, value: Any) -> None:
        """Change a setting of the host."""
        code = "async ([id, value]) => app.extensionManager.setting.set(id, value)"
        self.page.evaluate(code, [setting, value])
        self.wait(500)

    def sent(self, kind: str) -> Sent:
        """What the server sent to a node in the last run."""
        return Sent.read(self.node(kind, "app.nodeOutputs[node.id].moss_inspector[0]"))

    def inspector(self, kind: str) -> Inspector:
        """The inspector of the first node of a kind."""
        title = {"MoSs_FrequencyMap": 0, "MoSs_TokenDispatch": 1}[kind]
        return Inspector(self.page.locator(".moss-inspector:visible").nth(title))

    def point(self, inspector: Inspector, row: int, column: int, grid: list[int]) -> None:
        """Move the pointer to the middle of a cell."""
        box = inspector.root.locator(".moss-picture").bounding_box()
        x, y = (
            box["x"] + box["width"] * (column + 0.5) / grid[1],
            box["y"] + box["height"] * (row + 0.5) / grid[0],
        )
        self.page.mouse.move(x, y)

    def drag(self, inspector: Inspector, bound: int, pixels: float) -> None:
        """Drag a handle sideways."""
        box = inspector.root.locator(".moss-handle").nth(bound).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y, steps=4)
        self.page.mouse.up()
        self.away()

    def module(self, name: str, code: str, value: Any = None) -> Any:
        """The value of an expression about `module`, one of js/*.mjs, and `value`."""
        load = f'const module = await import("{MODULES}/{name}.mjs")'
        return self.page.evaluate(f"async (value) => {{ {load}; return {code}; }}", value)


@contextmanager
def launched() -> Iterator[Any]:
    """A headless browser of playwright; skips the test where playwright is missing."""
    missing = "NO PLAYWRIGHT: THE BROWSER'S PART WAS NOT TESTED; pip install playwright"
    with pytest.importorskip("playwright.sync_api", reason=missing).sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, host: Host, nodes2: bool, language: str = "en") -> Iterator[Page]:
    """A new page on a host.

    Args:
        browser: of playwright.
        nodes2: ComfyUI's newer renderer ("Nodes 2.0") instead of the classic canvas.
        language: of the page, such as "zh".
    """
    host.post("/api/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": nodes2, "Comfy.Locale": language})
    page = Page(browser.new_page(viewport={"width": 1300, "height": 900}))
    page.page.set_default_timeout(60_000)
    page.page.goto(host.url, wait_until="domcontentloaded")
    page.page.wait_for_function(READY)
    page.wait(2000)  # the host goes on loading its own graph
    yield page
    page.page.close()
    assert page.errors == []
