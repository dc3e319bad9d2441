"""Inspection: the data from which a browser redraws the dispatch for other bounds, without the model and without rounding.

Everything is JSON; arrays are base64 of their little-endian bytes, row by row.  A refine scale takes the cells whose rank
lies in `band(cells, its bound, the next bound)`, exactly as `dispatch_tokens` does.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..model.backbone import TokenWork
from ..model.schedule import Grid, Schedule
from ..ops import area_mean
from .dispatch import RefinePass, busiest_first, token_scores
from .draft import Draft
from .heatmap import colour_map, percentile, scale_colours
from .plan import Plan, plan_of

VERSION = 2
_STEPS = 9  # colours that the heatmap's colour map interpolates between


def inspection(
    draft: Draft,
    frequency: Tensor,
    step: RefinePass,
    work: TokenWork,
    kv_bytes: int,
    painted: Tensor | None = None,
) -> dict[str, Any]:
    """All that the inspector shows.

    Args:
        frequency: (B, H, W), >= 0.
        kv_bytes: of the draft's cache.
        painted: as in `dispatch_tokens`; it decides the ranks, the map shows the frequency alone.

    Returns:
        version: of this format.
        scales, grids: of the scales of the pass, coarsest first: index into the schedule and [h, w].
        bounds, colours: one for each of them, in percent and "#rrggbb".
        palette: "#rrggbb" of the heatmap from calm to busy in even steps, linear in between.
        map: on the last scale's grid, one string a picture: float32 frequency, and its percentile as uint8 (255 = 100 %).
        ranks: for every picture and refine scale, the uint16 rank of every cell, 0 = first to be taken.
        draft_tokens: in the cache: of all that the draft is made of, and of the prompt where the model keeps it there.
        work: multiply-adds a row; see `TokenWork` for linear and attention; draft and dense are sums over the passes.

    Raises:
        ValueError: scales that the draft has not left, or a mask for another number of pictures.
    """
    schedule = draft.recipe.schedule
    step = step.on(schedule)
    drawn, dense = plan_of(draft), Plan(0)
    replace(drawn, passes=(*drawn.passes, step)).on(schedule)  # refuses scales that were drawn already
    grids = [schedule.grids[scale] for scale in step.scales]
    ranks = [_ranks(frequency, grid, painted) for grid in grids]
    shown = area_mean(frequency, grids[-1])
    return {
        "version": VERSION,
        "scales": list(step.scales),
        "grids": [list(grid) for grid in grids],
        "bounds": list(step.bounds),
        "colours": _hex(scale_colours(step.scales, schedule)),
        "palette": _hex(colour_map(torch.linspace(0, 1, _STEPS))),
        "map": {
            "grid": list(grids[-1]),
            "frequency": _encode(shown, "<f4"),
            "percentile": _encode((255 * percentile(shown)).round(), "u1"),
        },
        "ranks": [list(scales) for scales in zip(*ranks, strict=True)],
        "draft_tokens": draft.cached_tokens + work.prefix,
        "kv_bytes": kv_bytes,
        "work": {
            "linear": work.linear,
            "attention": work.attention,
            **{name: _macs(plan, schedule, work) for name, plan in (("draft", drawn), ("dense", dense))},
        },
    }


def _macs(plan: Plan, schedule: Schedule, work: TokenWork) -> float:
    """Of one row."""
    return sum(step.macs(work) for step in plan.forward_passes(schedule, guided=False, prefix=work.prefix))


def _ranks(frequency: Tensor, grid: Grid, painted: Tensor | None) -> list[str]:
    """Rank of every cell of a grid, one string a picture."""
    order = busiest_first(token_scores(frequency, grid, painted))
    return _encode(order.argsort(dim=1), "<u2")


def _encode(values: Tensor, dtype: str) -> list[str]:
    return [base64.b64encode(picture.cpu().numpy().astype(dtype).tobytes()).decode() for picture in values]


def _hex(colours: Tensor) -> list[str]:
    """(n, 3) in [0, 1] -> "#rrggbb"."""
    return ["#" + bytes(colour).hex() for colour in (255 * colours).round().int().tolist()]
