"""A long day in one ComfyUI process: many prompts, many cancels.  Minutes long, so only with MOSS_SLOW=1."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from statistics import mean
from typing import Any

import graphs
import pytest
from graphs import Graph
from hosting import Host, checkout

MIB = 2**20
ROUND = (  # ten prompts unlike each other: method, aspect, area, batch
    ("moss", "1:1", "model's own", 1), ("dense", "16:9", "0.06M", 3), ("fastvar", "2:3", "model's own", 1),
    ("draft", "3:1", "0.06M", 2), ("moss", "9:16", "0.06M", 3), ("dense", "1:1", "model's own", 2),
    ("fastvar", "1:3", "0.06M", 2), ("draft", "1:1", "model's own", 3), ("moss", "3:2", "model's own", 2),
    ("dense", "4:5", "0.06M", 1),
)

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.skipif(
        checkout() is None,
        reason="NO COMFYUI CHECKOUT: NOTHING WAS TESTED IN A REAL HOST; set COMFYUI_PATH to one",
    ),
    pytest.mark.skipif(
        os.environ.get("MOSS_SLOW") != "1",
        reason="ENDURANCE WAS NOT TESTED: it takes minutes; set MOSS_SLOW=1",
    ),
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """In the mode that drops what the next prompt does not use: in the usual one the host itself keeps
    pictures in memory.
    """
    with Host("--cache-classic") as host:
        yield host


def picture(method: str, **widgets: Any) -> Graph:
    methods = {"moss": graphs.moss(), "draft": graphs.saved("draft", ["draft", 1])}
    return {**graphs.draft(**widgets), **(methods.get(method) or graphs.rival(method))}


def mixed(n: int) -> Graph:
    """The n-th of many prompts, none of which the host has seen."""
    method, aspect, area, batch = ROUND[n % 10]
    widgets = {"aspect": aspect, "area": area, "batch_size": batch, "preview": n % 2 == 0}
    return picture(method, prompt=f"{graphs.PROMPT} {n}", seed=n, **widgets)


def succeeded(result: dict[str, Any]) -> bool:
    return result["status"]["status_str"] == "success"


def test_memory_stays_flat_over_fifty_prompts(host: Host) -> None:
    """The mean of the last ten lies at most 3 % above that of the second ten, which do the same work, all of
    it loaded.
    """
    held = []
    for n in range(50):
        assert succeeded(host.run(mixed(n)))
        held.append(host.memory)
    early, late = mean(held[10:20]), mean(held[-10:])
    told = f"; {early / MIB:.1f} early, {late / MIB:.1f} late"
    print("MiB:", *(round(bytes / MIB) for bytes in held), told)  # noqa: T201
    assert late <= 1.03 * early


def cancelled_at(host: Host, graph: Graph, when: int, delay: float) -> list[str]:
    """Nodes that were running when the artist cancelled, `delay` seconds after the event of that number."""
    events = []

    def cancel(kind: str | int, data: Any) -> None:
        events.append(kind)
        if len(events) == when:
            time.sleep(delay)
            host.post("/interrupt", {})

    result = host.run(graph, on_event=cancel)
    assert "execution_error" not in events
    return [data["node_id"] for kind, data in result["events"] if kind == "execution_interrupted"]


def test_twenty_cancels_at_random_moments_leave_a_healthy_host(host: Host) -> None:
    def long(seed: int) -> Graph:
        return {
            **picture("moss", seed=seed, preview=True), **graphs.rival("dense"), **graphs.rival("fastvar"),
        }

    chance, events = random.Random(0), len(host.run(long(0))["events"])
    cancelled = []
    for n in range(1, 21):
        cancelled += cancelled_at(host, long(n), chance.randrange(1, events), chance.uniform(0, 0.3))
        assert succeeded(host.run(picture("moss", seed=100 + n, area="0.06M")))
    print("cancelled in:", *cancelled)  # noqa: T201
    assert len(cancelled) >= 10 and len(set(cancelled)) >= 3
    assert "Traceback" not in host.log
