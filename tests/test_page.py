"""What the page in the browser computes for itself is what the pipeline computes: one set of numbers for
both.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakehost import installed

from comfy_moss.model.backbone import NANO, Published, TokenWork
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.dispatch import (
    Dispatch,
    RefinePass,
    band,
    bounds_of_shares,
    dispatch_tokens,
    read_painting,
    write_painting,
)
from comfy_moss.pipeline.draft import Draft, Recipe
from comfy_moss.pipeline.heatmap import inspection
from comfy_moss.pipeline.plan import Plan, share_of_dense
from comfy_moss.pipeline.source import Source

NODE = shutil.which("node")
SCHEDULE = make_schedule(1.5, "0.25M")  # rows differ from columns
WORK = TokenWork(2_654_208.0, 2304.0)  # nano's
PRESETS = ("method", "automatic", "paper")
CHANCE = torch.Generator().manual_seed(0)


def painting(density: float) -> str:
    h, w = SCHEDULE.grids[-1]
    return write_painting(torch.rand(h, w, generator=CHANCE) < density)


def taken(dispatch: Dispatch) -> list[list[list[list[int]]]]:
    """For every picture and place of the last grid, which scales of the pass (0 = coarsest) redraw it."""
    height, width = SCHEDULE.grids[-1]
    pictures = []
    for n in range(len(dispatch.cells[0])):
        chosen = [set(cells[n].tolist()) for cells in dispatch.cells]
        grids = [SCHEDULE.grids[scale] for scale in dispatch.scales]

        def at(row: int, column: int, chosen=chosen, grids=grids) -> list[int]:
            centre = [
                ((2 * row + 1) * h // (2 * height), (2 * column + 1) * w // (2 * width)) for h, w in grids
            ]
            pairs = zip(centre, grids, chosen, strict=True)
            return [i for i, ((r, c), (_, w), cells) in enumerate(pairs) if r * w + c in cells]

        pictures.append([[at(row, column) for column in range(width)] for row in range(height)])
    return pictures


@dataclass(frozen=True)
class Case:
    """Widgets of MoSs Token Dispatch behind a draft that leaves k scales, and the next pass of its method."""

    preset: str
    values: str
    scales: str = "all"
    k: int = 4
    planned: RefinePass | None = None


def drafted(k: int, batch: int = 1, guidance: float = 1.0, inside: bool = False) -> Draft:
    """A draft that leaves k scales; of its values nothing is looked at but their number.

    Args:
        inside: it is drawn from a picture of which only a part may change.
    """
    bits = tuple(torch.zeros(batch, h * w, 1) for h, w in SCHEDULE.grids[:-k])
    mask = torch.zeros(1, *SCHEDULE.grids[-1], dtype=torch.bool)
    mask[:, 5:20, 3:30] = True
    source = Source(bits, mask=mask) if inside else None
    recipe = Recipe(
        (torch.zeros(1, 1),) * batch, None, (0,) * batch, SCHEDULE, Guidance(guidance), source=source
    )
    return Draft(recipe, bits, torch.zeros(batch, 1, 1, 1), "")


def dispatched(
    step: RefinePass, text: str, guidance: float = 1.0, inside: bool = False, batch: int = 2
) -> dict[str, Any]:
    """A payload, and what the pipeline makes of it; the draft leaves one scale before those of the pass."""
    draft = drafted(1 - step.scales[0], batch, guidance, inside)
    frequency = (torch.rand(batch, *SCHEDULE.grids[-1], generator=CHANCE) * 9).round()  # with ties
    painted = read_painting(text)
    dispatch = dispatch_tokens(frequency, SCHEDULE, step, painted, draft.recipe.source)
    payload = inspection(draft, frequency, step, WORK, 1000, painted)
    work, tokens = payload["work"], sum(dispatch.counts)
    row = tokens * (work["linear"] + work["attention"] * (payload["draft_tokens"] + tokens))
    plan = Plan(step.scales[0] - 1, (step,))
    share = share_of_dense(plan, SCHEDULE, WORK, guidance != 1)
    share = (work["draft"] + work["rows"] * row) / work["dense"] if inside else share  # plans know no picture
    return {
        "payload": payload | {"kind": "dispatch", "known": {}}, "painting": text,
        "scales": list(step.scales), "bounds": list(step.bounds),
        "tokens": list(dispatch.counts), "taken": taken(dispatch),
        "share": share,
    }


def read(maps: Any, case: Case, published: Published) -> dict[str, Any] | None:
    """The pass that MoSs Token Dispatch's widgets stand for; None: it refuses them."""
    wire = SimpleNamespace(draft=drafted(case.k), published=published, next_pass=case.planned)
    try:
        step = maps.read_pass(case.preset, case.values, case.scales, wire)
        step.on(SCHEDULE)
    except ValueError:
        return None
    return told(step)


def told(step: RefinePass | None) -> dict[str, Any] | None:
    return step and {"scales": list(step.scales), "bounds": list(step.bounds)}


def widgets(folder: Path) -> list[dict[str, Any]]:
    """What the nodes read in their widgets."""
    numbers = (
        "80, 70, 30, 10", "60; 50.5%; 20;0", "60; 50.5%, 20,0", "60 50 20 10", "[60/50|20 10]", "60, 50, 20",
        "50, 60, 20, 10", "101, 60, 20, 10", "60, 50, 20, 0x1", "60, 50, 20,", "60, 50, 20, 10;", "", "40",
        "10, 40, 20, 10", "60, -1, 20, 10", "'60、50, 20, 10'", "６０，50, 20, 10", "nan, 1, 1, 1",
        "1e1 5 4 3", ".5, .4, .3, .2", "1, 1, 0.5, 0", "1%, 1, 0.5, 0", "60,, 50, 20", "6 0, 50, 20, 10",
        "1e999, 1, 1, 1",
    )
    names = (
        "all", "", " ALL ", "-1", "1", "-4, -3", "-3 -1", "-1, -2", "-2, -2", "-5", "last", "-4,-3,-2,-1",
        "-1.5", "--1", "- 1", "-3;-2", "0",
    )
    custom = ("custom bounds", "custom shares")
    cases = [Case(preset, text) for preset in custom for text in numbers]
    cases += [Case(preset, "40", name) for preset in (*PRESETS, custom[0]) for name in names]
    cases += [Case(preset, "100", "all", k) for preset in PRESETS for k in range(1, 8)]
    planned = (RefinePass((-1,), (45.0,), guidance=1.0), RefinePass((-4, -2), (70.0, 20.0)))
    cases += [
        Case(preset, text, name, 4, step)
        for step in planned for preset in (*PRESETS, *custom)
        for text in ("60", "60, 20", "80, 70, 30, 10") for name in ("all", "", "-1", "-3, -1")
    ]
    with installed(folder) as host:
        host.start()
        maps, own = sys.modules["comfy_moss.nodes.maps"], NANO.on(SCHEDULE)
        found = {k: maps.known_bounds(k, own) for k in range(1, 8)}
        known = {preset: {k: each[preset] for k, each in found.items()} for preset in PRESETS[1:]}
        return [
            {"widgets": {"preset": case.preset, "values": case.values, "scales": case.scales}, "known": known,
             "left": list(range(-case.k, 0)), "planned": told(case.planned), "pass": read(maps, case, own)}
            for case in cases
        ]


def picks(folder: Path) -> list[tuple[str, int, list[int] | None]]:
    """What MoSs Pick Drafts reads in its widget."""
    texts = (
        "1", "1, 3", "2-4", "all", " ALL ", "4 2;2", "2 - 3, 1", "1,,3,", "", "0", "5", "3-2", "1-9", "one",
        "-1", "1.5",
    )
    with installed(folder) as host:
        host.start()
        pick = sys.modules["comfy_moss.nodes.pick"]

        def picked(text: str) -> list[int] | None:
            try:
                return pick.read_picks(text, 4)
            except ValueError:
                return None

        return [(text, 4, picked(text)) for text in texts]


def random_bounds(rng: random.Random) -> list[float]:
    digits = rng.choice([0, 1, 3])
    return sorted((round(rng.uniform(0, 100), digits) for _ in range(rng.randint(1, 7))), reverse=True)


def random_cuts() -> list[tuple[int, float, float]]:
    """Tokens and two bounds, among them halves of a token."""
    rng = random.Random(5)
    cuts = [(n, t, t / 2) for n in (1, 2, 8, 1000, 4096) for t in (0, 0.05, 12.5, 50, 99.95, 100)]
    for _ in range(1500):
        bounds, tokens = random_bounds(rng), rng.randint(1, 9000)
        cuts += [(tokens, up, low) for up, low in zip(bounds, [*bounds[1:], 0], strict=True)]
    return cuts


def vectors(folder: Path) -> dict[str, Any]:
    """Inputs and the pipeline's answers, as JSON can hold them."""
    ranges = [(cut, band(*cut)) for cut in random_cuts()]
    paintings = [painting(density) for density in (0.02, 0.5)]
    rng = random.Random(6)
    shares = [(10.0, 40.0, 20.0, 10.0), (0.0, 0.0), (33.3, 33.3, 33.4)]
    shares += [tuple(round(rng.uniform(0, 20), 1) for _ in range(rng.randint(1, 5))) for _ in range(300)]
    bounds = [(80.0, 70.0, 30.0, 10.0), (40.0, 30.0), (45.5,), (100.0, 66.6, 33.3)]
    steps = [RefinePass.of_last(cut) for cut in bounds]
    steps += [RefinePass((-4, -2), (70.0, 20.0)), RefinePass((-3,), (45.0,), guidance=1.0)]
    return {
        "widgets": widgets(folder), "picks": picks(folder),
        "bands": [(*cut, ranks.start, ranks.stop) for cut, ranks in ranges],
        "shares": [(share, bounds_of_shares(share)) for share in shares],
        "paintings": [
            (text, list(cells.shape[1:]), cells.flatten().int().tolist())
            for text, cells in ((text, read_painting(text)) for text in paintings)
        ],
        "dispatches": [dispatched(step, text) for step in steps for text in ("", paintings[0])]
        + [dispatched(step, "", guidance=3.0) for step in steps]
        + [dispatched(step, text, inside=True) for step in steps for text in ("", paintings[0])],
    }


@pytest.mark.skipif(
    NODE is None, reason="NO NODE.JS: THE PAGE'S ARITHMETIC WAS NOT TESTED; install node 20 or newer"
)
def test_the_page_computes_what_the_pipeline_computes(tmp_path: Path) -> None:
    file = tmp_path / "vectors.json"
    file.write_text(json.dumps(vectors(tmp_path)), encoding="utf-8")
    command = [NODE, "--test", str(Path(__file__).with_name("page.test.mjs"))]
    done = subprocess.run(
        command, env=os.environ | {"MOSS_VECTORS": str(file)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "# pass 8" in done.stdout
