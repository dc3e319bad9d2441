"""Pictures that explain the method: where the draft is busy, and which scale redraws which place.

Images are (B, H, W, 3) float32 in [0, 1], sRGB, as ComfyUI passes them.  Colours can be told apart with any
colour vision.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..images import INK, PAPER, QUIET, from_pillow, poster, to_pillow
from ..model.backbone import TokenWork
from ..model.schedule import Grid, Schedule
from ..ops import area_mean
from .cost import ForwardPass
from .dispatch import Dispatch, RefinePass, busiest_first, open_scores, token_scores
from .draft import Draft
from .plan import PassMaps, Plan, plan_of
from .source import Source

# Nine even steps of "magma" (Smith and van der Walt, public domain): perceptually even, readable in grey as
# well.
_MAGMA = "000004 1d1147 51127c 822681 b63679 e65164 fb8861 fec287 fcfdbf"
# Finest refine scale first, so that the finest scale keeps its colour whatever k is. Okabe and Ito's palette,
# moved until every colour vision tells neighbours and what stays as drafted apart (tests/test_palette.py).
_SCALES = "d65f00 fbe748 80a973 82e4ff 006ea2 a298ff dcaa28"
_READABLE = 512  # pixels of the shorter side from which tokens can be told apart
_LINE = 0.45  # how far the outline of a token is lightened


def _colours(table: str) -> Tensor:
    return torch.tensor([list(bytes.fromhex(code)) for code in table.split()]) / 255


DRAFTED = _colours("7f7f7f")[0]  # swatch of what stays as drafted


def scale_colours(scales: Sequence[int], schedule: Schedule) -> Tensor:
    """(n, 3), a colour a scale (indices into the schedule), in whatever pass; from the eighth last on they
    repeat.
    """
    palette = _colours(_SCALES)
    return torch.stack([palette[(len(schedule) - 1 - scale) % len(palette)] for scale in scales])


def colour_map(values: Tensor) -> Tensor:
    """Values in [0, 1] of any shape -> colours (..., 3), from near black over purple to pale yellow."""
    table = _colours(_MAGMA).to(values.device)
    place = values.clamp(0, 1) * (len(table) - 1)
    low = place.floor().long().clamp_max(len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[..., None])


def percentile(frequency: Tensor) -> Tensor:
    """Share of the same picture's places that are calmer, in [0, 1]; equals count half.

    Args:
        frequency: (B, h, w).
    """
    flat = frequency.flatten(1).contiguous()
    ordered = flat.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    return ((below + upto) / (2 * flat.shape[1])).view_as(frequency)


def _nearest(cells: Tensor, size: Grid) -> Tensor:
    """(B, h, w) -> (B, H, W): every pixel takes the cell that its centre lies in."""
    rows, cols = (
        (2 * torch.arange(pixels, device=cells.device) + 1) * count // (2 * pixels)
        for pixels, count in zip(size, cells.shape[1:], strict=True)
    )
    return cells[:, rows][:, :, cols]


def heatmap(frequency: Tensor, size: Grid) -> Tensor:
    """The frequency map in colour.  A place's colour is its percentile, the quantity that the bounds cut.

    Args:
        frequency: (B, h, w), >= 0.
        size: height and width in pixels; cells are enlarged without smoothing, so that each can be read.

    Returns:
        (B, H, W, 3).
    """
    return colour_map(_nearest(percentile(frequency), size))


def change_map(change: Tensor, size: Grid) -> Tensor:
    """Where an edit changed a picture, in colour: from none to the largest change of that picture.

    Args:
        change: (B, h, w), >= 0; size: height and width in pixels.

    Returns:
        (B, H, W, 3).
    """
    return colour_map(_nearest(change / change.amax((1, 2), keepdim=True).clamp_min(1e-20), size))


def enlarge(image: Tensor, size: Grid) -> Tensor:
    """(B, h, w, 3) -> (B, H, W, 3), smooth."""
    if tuple(image.shape[1:3]) == tuple(size):
        return image
    moved = F.interpolate(image.movedim(-1, 1), size=tuple(size), mode="bicubic", antialias=True)
    return moved.clamp(0, 1).movedim(1, -1)


def _outline(filled: Tensor, grid: Grid) -> Tensor:
    """Pixels on the lines around filled cells; filled (B, H, W) bool."""
    lines = torch.zeros_like(filled)
    for axis, count in ((1, grid[0]), (2, grid[1])):
        pixels = filled.shape[axis]
        cell = (2 * torch.arange(-1, pixels, device=filled.device) + 1) * count // (2 * pixels)
        first = (cell.diff() > 0).index_fill(0, torch.tensor(0, device=filled.device), True)
        before = filled.roll(1, axis).index_fill(axis, torch.tensor(0, device=filled.device), False)
        lines |= first.view((-1, 1) if axis == 1 else (1, -1)) & (filled | before)
    return lines


def overlay(image: Tensor, dispatch: Dispatch, schedule: Schedule) -> Tensor:
    """Which scale redraws which token, over the picture: one colour a scale, finest on top, the rest dimmed
    and grey.

    Args:
        image: (B, H, W, 3), the picture beneath.

    Returns:
        (B, H, W, 3).
    """
    size = tuple(image.shape[1:3])
    grey = (image @ image.new_tensor([0.2126, 0.7152, 0.0722]))[..., None].expand_as(image)
    canvas, colours = 0.10 + 0.38 * grey, scale_colours(dispatch.scales, schedule)
    for scale, cells, colour in zip(dispatch.scales, dispatch.cells, colours, strict=True):
        h, w = schedule.grids[scale]
        chosen = torch.zeros(len(image), h * w, dtype=torch.bool, device=image.device)
        chosen = chosen.scatter(1, cells.to(image.device), True).view(-1, h, w)
        filled, colour = _nearest(chosen, size), colour.to(image)
        canvas = torch.where(filled[..., None], colour * (0.5 + 0.5 * grey), canvas)
        canvas = torch.where(
            _outline(filled, (h, w))[..., None], torch.lerp(colour, torch.ones_like(colour), _LINE), canvas
        )
    return canvas


def legend(dispatch: Dispatch, schedule: Schedule, width: int) -> Tensor:
    """What the overlay's colours mean: a row a refine scale, finest first, with its grid (width x height),
    tokens, share.

    Args:
        width: in pixels.  The height follows from it and the number of scales.

    Returns:
        (1, H, width, 3).
    """
    rows, colours = [], scale_colours(dispatch.scales, schedule)
    for scale, count, colour in zip(dispatch.scales, dispatch.counts, colours, strict=True):
        h, w = schedule.grids[scale]
        rows.append((colour, f"{w} x {h}", f"{count} tokens", f"{100 * count / (h * w):.0f} %"))
    rest = max(
        0.0,
        1
        - sum(
            n / math.prod(schedule.grids[s]) for s, n in zip(dispatch.scales, dispatch.counts, strict=True)
        ),
    )
    rows.append((DRAFTED, "as drafted", "", f"{100 * rest:.0f} %"))
    step, font = round(width * 0.062), ImageFont.load_default(width * 0.042)
    sheet = Image.new("RGB", (width, step * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for n, (colour, grid, tokens, share) in enumerate([*reversed(rows[:-1]), rows[-1]]):
        middle, half = (n + 0.5) * step, 0.36 * step
        fill = tuple(round(255 * c) for c in colour.tolist())
        draw.rectangle((0, middle - half, 2 * half, middle + half), fill)
        for place, anchor, ink, text in (
            (0.075, "lm", INK, grid), (0.68, "rm", QUIET, tokens), (1, "rm", QUIET, share),
        ):
            draw.text((place * (width - 1), middle), text, ink, font, anchor)
    return from_pillow(sheet)


def colour_bar(width: int) -> Tensor:
    """The heatmap's colours from calm to busy, with the percentiles that the bounds refer to; (1, H, width,
    3).
    """
    bar, font = round(width * 0.04), ImageFont.load_default(width * 0.042)
    sheet = Image.new("RGB", (width, round(width * 0.124)), PAPER)
    ramp = colour_map(torch.linspace(0, 1, width)).expand(bar, -1, -1)
    sheet.paste(to_pillow(ramp), (0, round(width * 0.012)))
    draw, line = ImageDraw.Draw(sheet), width * 0.093
    for place, anchor, text in ((0, "lm", "calmest"), (0.5, "mm", "top 50 %"), (1, "rm", "busiest")):
        draw.text((place * (width - 1), line), text, QUIET, font, anchor)
    return from_pillow(sheet)


def explain(
    draft: Tensor, result: Tensor, passes: Sequence[PassMaps], heading: str = "",
    notes: Sequence[str] = ("", ""), before: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """The pictures that show how a picture came about.

    Args:
        draft, result: images (B, H, W, 3).
        passes: what explains each refine pass.
        notes: quiet lines under the titles of draft and result.
        before: images of the same kind by name, of what was there before the draft.

    Returns:
        Images "frequency" and "dispatch" of every pass ("frequency_2" and so on from the second) and
        "poster"; small pictures are enlarged so that tokens can be told apart.
    """
    height, width = draft.shape[1:3]
    times = math.ceil(_READABLE / min(height, width))
    size = (height * times, width * times)
    large, images = enlarge(result, size), {name: enlarge(image, size) for name, image in before.items()}
    panels = [(name.capitalize(), "", image, None) for name, image in images.items()]
    panels.append(("Draft", notes[0], enlarge(draft, size), None))
    for n, maps in enumerate(passes, start=1):
        schedule, tokens = maps.draft.recipe.schedule, sum(maps.dispatch.counts)
        number, end = (f" {n}", f"_{n}" if n > 1 else "") if len(passes) > 1 else ("", "")
        heat = heatmap(maps.frequency.to(result.device), size)
        shares = overlay(large, maps.dispatch, schedule)
        images |= {f"frequency{end}": heat, f"dispatch{end}": shares}
        drawn = "draft's codes" if n == 1 else "codes so far"
        panels.append((f"Frequency{number}", f"local variance of the {drawn}", heat, colour_bar(size[1])))
        said = f"{tokens} tokens, refined in one pass"
        panels.append((f"Dispatch{number}", said, shares, legend(maps.dispatch, schedule, size[1])))
    panels.append(("Result", notes[1], large, None))
    titles, quiet, shown, footers = zip(*panels, strict=True)
    return {**images, "poster": poster(shown, titles, quiet, footers, heading)}


# --- what the page is told ----------------------------------------------------------------------------------

# Inspection: the data from which a browser redraws the dispatch for other bounds, without the model and
# without rounding.
#
# Everything is JSON; arrays are base64 of their little-endian bytes, row by row. A refine scale takes the
# cells whose rank lies in `band(cells, its bound, the next bound)`, exactly as `dispatch_tokens` does.

VERSION = 3
_STEPS = 9  # colours that the heatmap's colour map interpolates between


def inspection(
    draft: Draft, frequency: Tensor, step: RefinePass, work: TokenWork, kv_bytes: int,
    painted: Tensor | None = None,
) -> dict[str, Any]:
    """All that the inspector shows: of the pass that ran, and what any other pass over this draft would take.

    Args:
        frequency: (B, H, W), >= 0.
        step: the pass.
        kv_bytes: of the draft's cache.
        painted: as in `dispatch_tokens`; it decides the ranks, the map shows the frequency alone.

    Returns:
        version: of this format.
        length: scales of the schedule.
        scales, grids, colours: of all scales that the draft leaves, coarsest first: index into the schedule,
            [h, w] and "#rrggbb".
        pass: scales (counted from the end) and bounds (percent) of the step, coarsest first.
        drafted: "#rrggbb" of what stays as drafted.
        palette: "#rrggbb" of the heatmap from calm to busy in even steps, linear in between.
        map: on the last grid of the schedule, one string a picture: float32 frequency, and its percentile as
            uint8 (255 = 100 %).
        ranks: for every picture and every scale left, the uint16 rank of every cell, 0 = first to be taken.
        open: for every scale left how many tokens of a picture may change; ranks from there on never do.
        draft_tokens: in the cache: of all that the draft is made of, and of the prompt where the model keeps
            it there.
        work: multiply-adds: linear and attention a row, see `TokenWork`; rows of the pass (2 = guided); draft
            and dense are sums over rows and forward passes.

    Raises:
        ValueError: scales that the draft has not left, or a mask for another number of pictures.
    """
    schedule, size = draft.recipe.schedule, len(draft.recipe.schedule)
    step = step.on(schedule)
    grids = [schedule.grids[scale] for scale in draft.left]
    shown = area_mean(frequency, schedule.grids[-1])
    ranked = [_ranks(frequency, s, schedule, painted, draft.recipe.source) for s in draft.left]
    ranks, tokens = zip(*ranked, strict=True)
    return {
        "version": VERSION, "length": size, "scales": list(draft.left),
        "grids": [list(grid) for grid in grids],
        "colours": _hex(scale_colours(draft.left, schedule)), "drafted": _hex(DRAFTED[None])[0],
        "pass": {"scales": [scale - size for scale in step.scales], "bounds": list(step.bounds)},
        "palette": _hex(colour_map(torch.linspace(0, 1, _STEPS))),
        "map": {
            "grid": list(schedule.grids[-1]), "frequency": _encode(shown, "<f4"),
            "percentile": _encode((255 * percentile(shown)).round(), "u1"),
        },
        "ranks": [list(scales) for scales in zip(*ranks, strict=True)], "open": list(tokens),
        "draft_tokens": draft.cached_tokens + work.before(draft.recipe.schedule), "kv_bytes": kv_bytes,
        "work": {"linear": work.linear, "attention": work.attention, **_work(draft, step, work)},
    }


def _work(draft: Draft, step: RefinePass, work: TokenWork) -> dict[str, float]:
    """Multiply-adds of the draft so far and of dense, and rows of the pass."""
    schedule, drawn = draft.recipe.schedule, plan_of(draft)
    guided = draft.recipe.guidance.active(len(schedule))
    whole = replace(drawn, passes=(*drawn.passes, step)).on(schedule)  # refuses scales already drawn

    def passes(plan: Plan) -> list[ForwardPass]:
        return plan.forward_passes(schedule, guided, work.before(schedule))

    plans = {"draft": drawn, "dense": Plan(0)}
    sums = {name: sum(step.macs(work) for step in passes(plan)) for name, plan in plans.items()}
    return {**sums, "rows": passes(whole)[-1].rows}


def _ranks(
    frequency: Tensor, scale: int, schedule: Schedule, painted: Tensor | None, source: Source | None
) -> tuple[list[str], int]:
    """Rank of every cell of a scale's grid, one string a picture, and how many of them may change."""
    scores, tokens = open_scores(token_scores(frequency, schedule.grids[scale], painted), scale, source)
    return _encode(busiest_first(scores).argsort(dim=1), "<u2"), tokens


def _encode(values: Tensor, dtype: str) -> list[str]:
    return [base64.b64encode(picture.cpu().numpy().astype(dtype).tobytes()).decode() for picture in values]


def _hex(colours: Tensor) -> list[str]:
    """(n, 3) in [0, 1] -> "#rrggbb"."""
    return ["#" + bytes(colour).hex() for colour in (255 * colours).round().int().tolist()]
