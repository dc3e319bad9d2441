"""How soon the inspector follows the pointer in ComfyUI's page, by the browser's software renderer.

Measured is the time from a pointer's event to the end of the frame that shows it.  On an idle machine of two
cores a hover takes 35 ms at most in 19 of 20 events, a drag of a bound 60 ms at most.  A busy machine is
allowed as much more as it is slower at moving the pointer over the host's own empty canvas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from browser import Page, chromium, launched, opened
from hosting import Host, checkout

pytestmark = [
    pytest.mark.browser,
    pytest.mark.host,
    pytest.mark.skipif(
        checkout() is None or chromium() is None, reason="NO COMFYUI OR NO BROWSER: NO SPEED WAS MEASURED"
    ),
]
MAP, DISPATCH = "MoSs_FrequencyMap", "MoSs_TokenDispatch"
HOVER, DRAG = 35, 60  # milliseconds: 95th percentile, worst
IDLE = 20  # milliseconds over the empty canvas, the median on an idle machine
ROUNDS = 3  # the best counts: what else runs only ever adds
WATCH = """() => {
  const times = [];
  const seen = (event) => requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel(); // its message comes behind the frame
    port1.onmessage = () => times.push(performance.now() - event.timeStamp);
    port2.postMessage(0);
  });
  window.addEventListener("pointermove", seen, true);
  window.mossTimes = () => {
    window.removeEventListener("pointermove", seen, true);
    return times;
  };
}"""


@dataclass(frozen=True)
class Times:
    """Of one way of moving: milliseconds from the event to the frame's end, and layouts of the page for each.
    """

    milliseconds: list[float]
    layouts: float

    @property
    def median(self) -> float:
        return float(np.median(self.milliseconds))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.milliseconds, 95))

    def __str__(self) -> str:
        worst = max(self.milliseconds)
        return f"median {self.median:.0f}, p95 {self.p95:.0f}, worst {worst:.0f} ms"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes 2.0"])
def page(request: pytest.FixtureRequest, host: Host) -> Iterator[Page]:
    with launched() as browser, opened(browser, host, request.param) as page:
        page.build()
        page.run()
        page.wait(1000)
        yield page


def layouts(session: Any) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "LayoutCount")


def moved(page: Page, places: list[tuple[float, float]]) -> Times:
    """Move the pointer over places, one a frame."""
    page.page.mouse.move(*places[0])
    session = page.page.context.new_cdp_session(page.page)
    session.send("Performance.enable")
    before = layouts(session)
    page.page.evaluate(WATCH)
    for x, y in places:
        page.page.mouse.move(x, y)
    page.wait(100)
    done = layouts(session) - before
    session.detach()
    return Times(page.page.evaluate("() => window.mossTimes()"), done / len(places))


def around(box: dict[str, float], n: int = 80) -> list[tuple[float, float]]:
    """Places all over a box, another token each time."""
    turns = [6 * math.pi * i / n for i in range(n)]
    across, down = box["width"], box["height"]
    return [
        (box["x"] + across * (0.5 + 0.45 * math.cos(t)), box["y"] + down * (0.5 + 0.45 * math.sin(1.7 * t)))
        for t in turns
    ]


def hovered(page: Page, kind: str) -> Times:
    return moved(page, around(page.inspector(kind).root.locator(".moss-picture").bounding_box()))


def dragged(page: Page, kind: str) -> Times:
    box = page.inspector(kind).root.locator(".moss-handle").nth(2).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.page.mouse.move(x, y)
    page.page.mouse.down()
    times = moved(page, [(x + 50 * math.sin(i / 6), y) for i in range(50)])
    page.page.mouse.up()
    page.away()
    return times


def slowness(page: Page) -> float:
    """How many times as slow as when it is idle the machine is now."""
    return max(1.0, moved(page, around({"x": 900, "y": 600, "width": 150, "height": 60})).median / IDLE)


@pytest.mark.parametrize("kind", [MAP, DISPATCH])
def test_hover_and_drag_follow_the_pointer(request: pytest.FixtureRequest, page: Page, kind: str) -> None:
    says = request.config.pluginmanager.get_plugin("terminalreporter")
    found: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        slow = slowness(page)
        hover, drag = hovered(page, kind), dragged(page, kind)
        says.write_line(f"\n{kind}: hover {hover}; drag {drag}; machine {slow:.2f} times its idle time")
        found.append((hover.p95 / slow, max(drag.milliseconds) / slow))
        if found[-1][0] <= HOVER and found[-1][1] <= DRAG:
            break
    assert min(hover for hover, _ in found) <= HOVER and min(drag for _, drag in found) <= DRAG


@pytest.mark.parametrize("kind", [MAP, DISPATCH])
def test_a_frame_lays_the_page_out_once(page: Page, kind: str) -> None:
    hover, drag = hovered(page, kind), dragged(page, kind)
    assert hover.layouts <= 1.1
    assert drag.layouts <= 2.1  # the host's own widgets follow the numbers


def test_no_filter_draws_the_node_anew_for_every_pixel(page: Page) -> None:
    nodes = page.page.locator(".lg-node:has(.moss-inspector)")
    filters = nodes.evaluate_all("(all) => all.map((node) => getComputedStyle(node).filter)")
    assert set(filters) <= {"none"}
