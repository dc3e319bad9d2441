"""Two-dimensional rotary positions shared by all scales.

A token's position is measured on the last grid of the ratio's 1M schedule, so that tokens of different scales that show
the same place of the picture have the same position.  Facts: Infinity specification, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule


@dataclass(frozen=True)
class Positions:
    """Where each of N tokens lies: a dense step lists one scale, a refine step parts of several.

    Attributes:
        scale: (B, N) int64 index into the schedule, 0 = coarsest.
        row, col: (B, N) int64, in cells of that scale's own grid.
    B may be 1 for "the same in every row of the batch".
    """

    scale: Tensor
    row: Tensor
    col: Tensor

    @classmethod
    def of_scale(cls, schedule: Schedule, scale: int, device: torch.device | str = "cpu") -> Positions:
        """All tokens of one scale in raster order, (1, h*w)."""
        h, w = schedule.grids[scale]
        cell = torch.arange(h * w, device=device)[None]
        return cls(torch.full_like(cell, scale), cell // w, cell % w)

    @classmethod
    def of_cells(cls, schedule: Schedule, scale: int, cells: Tensor) -> Positions:
        """Chosen tokens of one scale; cells (B, N) are raster indices on its grid."""
        width = schedule.grids[scale][1]
        return cls(torch.full_like(cells, scale), cells // width, cells % width)

    @classmethod
    def concat(cls, parts: list[Positions]) -> Positions:
        """One sequence from several, in order."""
        return cls(*(torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("scale", "row", "col")))

    def __len__(self) -> int:
        return self.scale.shape[1]


def grid_positions(positions: Positions, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Integer (py, px), each (B, N) float32, on the schedule's rope grid: round(index * full / own), half to even, in fp32."""
    grids = torch.tensor(schedule.grids, dtype=torch.float32, device=positions.scale.device)
    full = torch.tensor(schedule.rope_grid, dtype=torch.float32, device=positions.scale.device)
    ratio = (full / grids)[positions.scale]  # (B, N, 2)
    return (positions.row * ratio[..., 0]).round(), (positions.col * ratio[..., 1]).round()


def rotation(positions: Positions, schedule: Schedule, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (B, N, head_dim / 2) float32: the height's angles first, then the width's.

    Raises:
        ValueError: head_dim is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"a head of {head_dim} channels cannot carry two-dimensional rotary positions (needs a multiple of 4)")
    half = head_dim // 2
    steps = torch.arange(half // 2, dtype=torch.float32, device=positions.scale.device)
    frequency = 10000.0 ** (-2 * steps / half)
    py, px = grid_positions(positions, schedule)
    angles = torch.cat([py[..., None] * frequency, px[..., None] * frequency], dim=-1)
    return angles.cos(), angles.sin()
