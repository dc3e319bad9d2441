"""What the page in the browser computes for itself is what the pipeline computes: one set of numbers for
both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_moss.model.backbone import TokenWork
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

NODE = shutil.which("node")
SCHEDULE = make_schedule(1.5, "0.25M")  # rows differ from columns
WORK = TokenWork(2_654_208.0, 2304.0)  # nano's
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


def dispatched(bounds: tuple[float, ...], text: str, batch: int = 2) -> dict[str, Any]:
    """A payload, and what the pipeline makes of it."""
    step, k = RefinePass.of_last(bounds), len(bounds)
    recipe = Recipe((torch.zeros(1, 1),) * batch, None, (0,) * batch, SCHEDULE)
    bits = tuple(torch.zeros(batch, h * w, 1) for h, w in SCHEDULE.grids[:-k])
    draft = Draft(recipe, bits, torch.zeros(batch, 1, 1, 1), "")
    frequency = (torch.rand(batch, *SCHEDULE.grids[-1], generator=CHANCE) * 9).round()  # with ties
    painted = read_painting(text)
    dispatch = dispatch_tokens(frequency, SCHEDULE, step, painted)
    payload = inspection(draft, frequency, step, WORK, 1000, painted)
    return {
        "payload": payload | {"kind": "dispatch", "known": {}}, "painting": text, "bounds": list(bounds),
        "tokens": list(dispatch.counts), "taken": taken(dispatch),
        "share": share_of_dense(Plan(-k, (step,)), SCHEDULE, WORK, guided=False),
    }


def vectors() -> dict[str, Any]:
    """Inputs and the pipeline's answers, as JSON can hold them."""
    cuts = [
        (n, up, low)
        for n in (1, 16, 144, 1023, 4096)
        for up, low in ((100.0, 0.0), (33.3, 10.0), (12.5, 12.5), (0.5, 0))
    ]
    ranges = [(cut, band(*cut)) for cut in cuts]
    paintings = [painting(density) for density in (0.02, 0.5)]
    shares = [(10.0, 40.0, 20.0, 10.0), (0.0, 0.0), (33.3, 33.3, 33.4)]
    bounds = [(80.0, 70.0, 30.0, 10.0), (40.0, 30.0), (45.5,), (100.0, 66.6, 33.3)]
    return {
        "bands": [(*cut, ranks.start, ranks.stop) for cut, ranks in ranges],
        "shares": [(share, bounds_of_shares(share)) for share in shares],
        "paintings": [
            (text, list(cells.shape[1:]), cells.flatten().int().tolist())
            for text, cells in ((text, read_painting(text)) for text in paintings)
        ],
        "dispatches": [dispatched(cut, text) for cut in bounds for text in ("", paintings[0])],
    }


@pytest.mark.skipif(
    NODE is None, reason="NO NODE.JS: THE PAGE'S ARITHMETIC WAS NOT TESTED; install node 20 or newer"
)
def test_the_page_computes_what_the_pipeline_computes(tmp_path: Path) -> None:
    file = tmp_path / "vectors.json"
    file.write_text(json.dumps(vectors()), encoding="utf-8")
    command = [NODE, "--test", str(Path(__file__).with_name("page.test.mjs"))]
    done = subprocess.run(
        command, env=os.environ | {"MOSS_VECTORS": str(file)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "# pass 4" in done.stdout
