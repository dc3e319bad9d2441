"""Dispatch: give each frequency band of the draft to one of the scales of a refine pass.

On the grid of its own scale, refine scale i takes the tokens whose rank from the top lies in (t_{i+1}, t_i]
percent. Ranks, not absolute values: token counts are then the same for every picture and known before the
run.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.schedule import Grid, Schedule
from ..ops import area_mean
from .source import Source


@dataclass(frozen=True)
class RefinePass:
    """One forward pass over parts of one or more scales: what it redraws, and how.

    Attributes:
        scales: indices into the schedule, coarsest first; negative ones count from the end, -1 = the last.
        bounds: t_1 >= ... >= t_n in percent of a scale's tokens, one a scale: scale i takes the tokens whose
            rank from the busiest lies in (t_{i+1}, t_i] percent, t_{n+1} = 0.
        cross_scale: tokens of all scales of the pass see each other (CSSA); off = only those of their own
            scale (the paper's SA ablation).
        guidance: strength in this pass; None = the recipe's, 1 = none: the prompts' rows alone, half the
            work. True stands for None and False for 1.
        strength: factor on what the pass adds, in [0, 1]; 1 is the paper's.

    Raises:
        ValueError: a value out of range, or not as many bounds as scales.
    """

    scales: tuple[int, ...]
    bounds: tuple[float, ...]
    cross_scale: bool = True
    guidance: float | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.guidance, bool):
            object.__setattr__(self, "guidance", None if self.guidance else 1.0)
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "bounds", tuple(self.bounds))
        check_bounds(self.bounds)
        if len(self.scales) != len(self.bounds):
            raise ValueError(
                f"a pass over {len(self.scales)} scales needs as many bounds, got {len(self.bounds)}"
            )
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance of a pass must be 0 or more, got {self.guidance}")
        if not (math.isfinite(self.strength) and 0 <= self.strength <= 1):
            raise ValueError(f"strength must lie between 0 and 1, got {self.strength}")

    @classmethod
    def of_last(cls, bounds: Sequence[float], **settings: Any) -> RefinePass:
        """The paper's pass: the last k scales for k bounds."""
        return cls(tuple(range(-len(bounds), 0)), tuple(bounds), **settings)

    @property
    def guided(self) -> bool:
        """Whether guidance may run; off for good where it is 1."""
        return self.guidance != 1

    def on(self, schedule: Schedule) -> RefinePass:
        """The same with its scales counted from the first.

        Raises:
            ValueError: a scale that the schedule lacks, or scales that do not rise.
        """
        size = len(schedule)
        if len(self.scales) >= size:
            raise ValueError(
                f"{len(self.scales)} refine scales leave no scale for the draft; this picture has {size} "
                "scales"
            )
        scales = tuple(s + size if s < 0 else s for s in self.scales)
        if not all(0 < s < size for s in scales):
            raise ValueError(
                f"a pass names the scales {', '.join(map(str, self.scales))}, but this picture has the "
                f"scales 0 to {size - 1} (or {-size} to -1), of which the first is always drafted"
            )
        if any(a >= b for a, b in pairwise(scales)):
            raise ValueError(
                "a pass lists its scales from coarse to fine, each once; got "
                f"{', '.join(map(str, self.scales))}"
            )
        return replace(self, scales=scales)

    def counts(self, schedule: Schedule) -> tuple[int, ...]:
        """Tokens that each scale of the pass will redraw, known before the run."""
        grids = [schedule.grids[s] for s in self.on(schedule).scales]
        lower = (*self.bounds[1:], 0.0)
        return tuple(
            len(band(h * w, up, low)) for (h, w), up, low in zip(grids, self.bounds, lower, strict=True)
        )


def check_bounds(bounds: Sequence[float]) -> None:
    """Refuse bounds that are no falling percentages.

    Raises:
        ValueError: as said.
    """
    text = ", ".join(f"{b:g}" for b in bounds)
    if not bounds or not all(math.isfinite(b) and 0 <= b <= 100 for b in bounds):
        raise ValueError(f"bounds must be percentages between 0 and 100, got [{text}]")
    if any(a < b for a, b in pairwise(bounds)):
        raise ValueError(
            f"bounds must fall or stay equal from the coarsest to the finest scale, got [{text}]"
        )


def bounds_of_shares(shares: Sequence[float]) -> tuple[float, ...]:
    """Bounds from the percentage each scale of a pass gets, coarsest first; what is left of 100 stays as
    drafted.

    Raises:
        ValueError: a share is negative or they sum to more than 100.
    """
    if not all(share >= 0 for share in shares) or not 0 <= sum(shares) <= 100 + 1e-6 or not shares:
        raise ValueError(f"shares must be 0 or more and sum to at most 100, got {list(shares)}")
    return tuple(min(100.0, sum(shares[i:])) for i in range(len(shares)))


@dataclass(frozen=True)
class Dispatch:
    """Which tokens each scale of a pass redraws.

    Attributes:
        scales: indices into the schedule, coarsest first.
        cells: per scale, (B, n_i) raster indices on its grid, ascending.
    """

    scales: tuple[int, ...]
    cells: tuple[Tensor, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens per refine scale and picture."""
        return tuple(c.shape[1] for c in self.cells)

    def cpu(self) -> Dispatch:
        """The same on the CPU; itself where it is there."""
        cells = on_cpu(self.cells)
        return self if cells is self.cells else Dispatch(self.scales, cells)


def on_cpu(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same on the CPU; itself where all are there."""
    here = all(tensor.device.type == "cpu" for tensor in tensors)
    return tensors if here else tuple(tensor.cpu() for tensor in tensors)


def band(tokens: int, upper: float, lower: float) -> range:
    """Ranks (0 = busiest) of the tokens between two bounds in percent.

    The number of tokens is tokens * (upper - lower) / 100 and the first rank tokens * lower / 100, both
    rounded half up.
    """
    start = math.floor(tokens * lower / 100 + 0.5)
    count = math.floor(tokens * (upper - lower) / 100 + 0.5)
    return range(start, min(tokens, start + count))


def token_scores(frequency: Tensor, grid: Grid, painted: Tensor | None = None) -> Tensor:
    """What the tokens of one scale are ranked by: the frequency on its grid, or that as a part of its peak
    plus the mask.

    Args:
        frequency: (B, H, W), >= 0.
        painted: as in `dispatch_tokens`.

    Returns:
        (B, h, w).

    Raises:
        ValueError: a mask for another number of pictures.
    """
    score = area_mean(frequency, grid)
    if painted is not None:
        score = score / score.amax((1, 2), keepdim=True).clamp_min(1e-20) + _fit_mask(painted, score)
    return score


def busiest_first(scores: Tensor) -> Tensor:
    """Raster indices (B, h*w) of tokens by falling score (B, h, w); ties in raster order."""
    return scores.flatten(1).sort(dim=1, descending=True, stable=True).indices


def dispatch_tokens(
    frequency: Tensor, schedule: Schedule, refine: RefinePass, painted: Tensor | None = None,
    source: Source | None = None,
) -> Dispatch:
    """Share the tokens of a pass out by rank of frequency.

    Args:
        frequency: (B, H, W), >= 0.
        painted: optional (B or 1, h, w) in [0, 1], any size: fully painted places come before all others, so
            they are redrawn at the finest scales first.  The number of tokens does not change.
        source: the picture that is drawn from: bounds are then percent of the places that may change.  Where
            pictures of a batch may change in unequal parts, all redraw as many tokens as the largest part.

    Raises:
        ValueError: scales that the schedule lacks, or a mask for another number of pictures.
    """
    refine = refine.on(schedule)
    lower = (*refine.bounds[1:], 0.0)
    cells = []
    for scale, up, low in zip(refine.scales, refine.bounds, lower, strict=True):
        grid = schedule.grids[scale]
        scores, tokens = open_scores(token_scores(frequency, grid, painted), scale, source)
        order, ranks = busiest_first(scores), band(tokens, up, low)
        cells.append(order[:, ranks.start : ranks.stop].sort(dim=1).values)
    return Dispatch(refine.scales, tuple(cells))


def open_scores(scores: Tensor, scale: int, source: Source | None) -> tuple[Tensor, int]:
    """Scores (B, h, w) of a scale's tokens with those that the source keeps behind all others, and how many
    tokens of a picture are open to change.
    """
    grid = scores.shape[1:]
    if source is None or source.mask is None:
        return scores, grid.numel()
    kept = source.kept(grid).to(scores.device).view(-1, *grid).expand_as(scores)
    return scores.masked_fill(kept, -1.0), grid.numel() - int(kept.flatten(1).sum(1).min())


def _fit_mask(painted: Tensor, score: Tensor) -> Tensor:
    if painted.dim() != 3 or painted.shape[0] not in (1, len(score)):
        raise ValueError(
            f"the painted mask is {tuple(painted.shape)}; it needs one mask, or one each for {len(score)} "
            "pictures"
        )
    fitted = area_mean(painted.to(score).clamp(0, 1), score.shape[1:])
    return torch.nan_to_num(fitted)


# --- painted masks ------------------------------------------------------------------------------------------

# Painting: cells marked by hand, as a short text that a workflow file can hold.

_FORM = re.compile(r"(\d{1,4})x(\d{1,4}):([A-Za-z0-9+/]*={0,2})")


def read_painting(text: str) -> Tensor | None:
    """Painted cells from their text.

    Args:
        text: "ROWSxCOLUMNS:" and base64 of one bit a cell, row by row, the first cell in the highest bit; ""
            = nothing painted.

    Returns:
        (1, rows, columns) float32 of 0 and 1, or None.

    Raises:
        ValueError: another form, or too few or too many bits.
    """
    if not text.strip():
        return None
    match = _FORM.fullmatch(text.strip())
    try:
        data = base64.b64decode(match[3], validate=True) if match else b""
    except binascii.Error:
        data = b""
    cells = int(match[1]) * int(match[2]) if match else 0
    if not cells or len(data) != -(-cells // 8):
        raise ValueError(f"the painting {text[:40]!r} is damaged; clear it and paint again")
    bits = torch.tensor(list(data))[:, None] >> torch.arange(7, -1, -1) & 1
    return bits.flatten()[:cells].view(1, int(match[1]), int(match[2])).float()


def write_painting(cells: Tensor) -> str:
    """The text of painted cells (rows, columns) bool; "" when none is."""
    if not cells.any():
        return ""
    rows, columns = cells.shape
    bits = F.pad(cells.flatten().long(), (0, -cells.numel() % 8)).view(-1, 8)
    data = bytes((bits << torch.arange(7, -1, -1)).sum(1).tolist())
    return f"{rows}x{columns}:{base64.b64encode(data).decode()}"


def as_mask(mask: Tensor) -> Tensor:
    """A mask as neighbours pass it, (h, w), (B, h, w), (B, 1, h, w) or (B, h, w, 1), as (B, h, w) float32 on
    the CPU.

    Raises:
        ValueError: another shape, or nothing in it.
    """
    shape = tuple(mask.shape)
    mask = mask[None] if mask.dim() == 2 else mask
    while mask.dim() > 3 and 1 in (mask.shape[1], mask.shape[-1]):
        mask = mask.squeeze(1) if mask.shape[1] == 1 else mask.squeeze(-1)
    if mask.dim() != 3 or mask.numel() == 0:
        raise ValueError(f"the mask input has the shape {shape}, which is no mask; wire it to a MASK output")
    return torch.nan_to_num(mask.detach().float().cpu(), 0.0, 1.0, 0.0).clamp(0, 1)


def as_picture(image: Tensor) -> Tensor:
    """A picture as neighbours pass it, (B, H, W, C) or (H, W, C), of any number of channels, as (B, H, W, 3).

    One channel (or one and its alpha) is grey; of more the first three count.  float32 in [0, 1] on the CPU.

    Raises:
        ValueError: another shape, or nothing in it.
    """
    shape = tuple(image.shape)
    image = image[None] if image.dim() == 3 else image.squeeze(1) if image.dim() == 5 else image
    if image.dim() != 4 or image.numel() == 0:
        raise ValueError(
            f"the image input has the shape {shape}, which is no picture; wire it to an IMAGE output"
        )
    image = image.detach().float().cpu() / (1 if image.is_floating_point() else 255)
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(*image.shape[:-1], 3)
    return torch.nan_to_num(image, 0.0, 1.0, 0.0)


def join_masks(mask: Tensor | None, painting: Tensor | None) -> Tensor | None:
    """What either marks.

    Args:
        mask: as `as_mask` reads it, any size.
        painting: (1, rows, columns).

    Returns:
        (B or 1, ., .) of the larger of the two sizes, or None.
    """
    mask = None if mask is None else as_mask(mask)
    if mask is None or painting is None:
        return painting if mask is None else mask
    size = [max(sides) for sides in zip(mask.shape[1:], painting.shape[1:], strict=True)]
    fitted = (
        F.interpolate(m[:, None].float().cpu(), size, mode="nearest-exact")[:, 0] for m in (mask, painting)
    )
    return torch.maximum(*fitted)
