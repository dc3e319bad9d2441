"""Dispatch: give each frequency band of the draft to one of the last k scales.

On the grid of its own scale, refine scale i takes the tokens whose rank from the top lies in (t_{i+1}, t_i] percent.
Ranks, not absolute values: token counts are then the same for every picture and known before the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.backbone import PAPER_BOUNDS
from ..model.schedule import Grid, Schedule
from ..ops import area_mean


@dataclass(frozen=True)
class DispatchConfig:
    """How the frequency bands are cut.

    Attributes:
        bounds: t_1 >= ... >= t_k in percent of the tokens, coarsest refine scale first.
    """

    bounds: tuple[float, ...] = PAPER_BOUNDS[4]

    def __post_init__(self) -> None:
        text = ", ".join(f"{b:g}" for b in self.bounds)
        if not self.bounds or not all(math.isfinite(b) and 0 <= b <= 100 for b in self.bounds):
            raise ValueError(f"bounds must be percentages between 0 and 100, got [{text}]")
        if any(a < b for a, b in zip(self.bounds, self.bounds[1:], strict=False)):
            raise ValueError(f"bounds must fall or stay equal from the coarsest to the finest scale, got [{text}]")

    @classmethod
    def from_shares(cls, shares: Sequence[float]) -> DispatchConfig:
        """Bounds from the percentage each refine scale gets, coarsest first; what is left of 100 stays as drafted.

        Raises:
            ValueError: a share is negative or they sum to more than 100.
        """
        if not all(share >= 0 for share in shares) or not 0 <= sum(shares) <= 100 + 1e-6 or not shares:
            raise ValueError(f"shares must be 0 or more and sum to at most 100, got {list(shares)}")
        return cls(tuple(min(100.0, sum(shares[i:])) for i in range(len(shares))))

    @property
    def k(self) -> int:
        return len(self.bounds)


@dataclass(frozen=True)
class Dispatch:
    """Which tokens each refine scale redraws.

    Attributes:
        scales: indices into the schedule of the k refine scales, coarsest first.
        cells: per refine scale, (B, n_i) raster indices on its grid, ascending.
    """

    scales: tuple[int, ...]
    cells: tuple[Tensor, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens per refine scale and picture."""
        return tuple(c.shape[1] for c in self.cells)


def band(tokens: int, upper: float, lower: float) -> range:
    """Ranks (0 = busiest) of the tokens between two bounds in percent.

    The number of tokens is tokens * (upper - lower) / 100 and the first rank tokens * lower / 100, both rounded half up.
    """
    start = math.floor(tokens * lower / 100 + 0.5)
    count = math.floor(tokens * (upper - lower) / 100 + 0.5)
    return range(start, min(tokens, start + count))


def refine_counts(schedule: Schedule, bounds: Sequence[float]) -> tuple[int, ...]:
    """Tokens that each refine scale will redraw, known before the run.

    Raises:
        ValueError: as many bounds as scales, or more.
    """
    k = len(bounds)
    if k >= len(schedule):
        raise ValueError(f"{k} refine scales leave no scale for the draft; this picture has {len(schedule)} scales")
    grids, lower = schedule.grids[-k:], (*bounds[1:], 0.0)
    return tuple(len(band(h * w, up, low)) for (h, w), up, low in zip(grids, bounds, lower, strict=True))


def token_scores(frequency: Tensor, grid: Grid, painted: Tensor | None = None) -> Tensor:
    """What the tokens of one scale are ranked by: the frequency on its grid, or that as a part of its peak plus the mask.

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
    frequency: Tensor, schedule: Schedule, config: DispatchConfig, painted: Tensor | None = None
) -> Dispatch:
    """Share the tokens out by rank of frequency.

    Args:
        frequency: (B, H, W), >= 0.
        painted: optional (B or 1, h, w) in [0, 1], any size: fully painted places come before all others, so they are
            redrawn at the finest scales first.  The number of tokens does not change.

    Raises:
        ValueError: too many bounds for the schedule, or a mask for another number of pictures.
    """
    refine_counts(schedule, config.bounds)  # refuses impossible bounds
    first = len(schedule) - config.k
    lower = (*config.bounds[1:], 0.0)
    cells = []
    for (h, w), up, low in zip(schedule.grids[first:], config.bounds, lower, strict=True):
        order = busiest_first(token_scores(frequency, (h, w), painted))
        ranks = band(h * w, up, low)
        cells.append(order[:, ranks.start : ranks.stop].sort(dim=1).values)
    return Dispatch(tuple(range(first, len(schedule))), tuple(cells))


def _fit_mask(painted: Tensor, score: Tensor) -> Tensor:
    if painted.dim() != 3 or painted.shape[0] not in (1, len(score)):
        raise ValueError(f"the painted mask is {tuple(painted.shape)}; it needs one mask, or one each for {len(score)} pictures")
    fitted = area_mean(painted.to(score).clamp(0, 1), score.shape[1:])
    return torch.nan_to_num(fitted)
