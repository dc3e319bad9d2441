"""Take the page's pictures in both renderers, dark and light, English and Chinese: python docs/screens.py

Needs what docs/workflows.py needs.  Writes docs/images/screens/RENDERER_THEME_LANGUAGE.jpg: the first
template after a run, with the pointer on a token.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT / "tests")
from browser import RUN, Page, launched, opened  # noqa: E402
from hosting import Host  # noqa: E402

TEMPLATE = ROOT / "workflows" / "01 Text to image.json"
FOLDER = ROOT / "docs" / "images" / "screens"
RENDERERS, THEMES, LANGUAGES = {"classic": False, "nodes2": True}, ("dark", "light"), ("en", "zh")
SIZE = {"width": 1366, "height": 768}
SHOW = """() => {
  const node = app.graph.nodes.find(({ type }) => type === "MoSs_FrequencyMap");
  app.canvas.ds.scale = 0.86;
  app.canvas.ds.offset = [430 - node.pos[0], 130 - node.pos[1]];
  app.canvas.setDirty(true, true);
}"""


def take(page: Page, name: str) -> None:
    page.page.set_viewport_size(SIZE)
    graph = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    page.page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
    page.wait(1000)
    if error := page.page.evaluate(RUN):
        sys.exit(f"{name}: {error}")
    page.page.evaluate(SHOW)
    page.wait(4000)  # until the host's messages are gone
    box = page.page.locator(".moss-stage:visible").first.bounding_box()
    page.page.mouse.move(box["x"] + 0.62 * box["width"], box["y"] + 0.33 * box["height"])
    page.wait(800)
    picture = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture.save(FOLDER / f"{name}.jpg", quality=82, optimize=True)


def main() -> None:
    with Host() as host, launched() as browser:
        for renderer, theme, language in itertools.product(RENDERERS, THEMES, LANGUAGES):
            host.post("/api/settings", {"Comfy.ColorPalette": theme})
            with opened(browser, host, RENDERERS[renderer], language) as page:
                take(page, f"{renderer}_{theme}_{language}")


if __name__ == "__main__":
    main()
