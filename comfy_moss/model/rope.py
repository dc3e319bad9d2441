"""Rotary positions of a picture's tokens, shared by all scales.

A token's position is measured on the last grid of the ratio's 1M schedule, so that tokens of different scales
that show the same part of the picture have the same position.  Facts: docs/infinity.md, section 5.

HART's tables are as wide as a head (D), because its swapped halves are not those of rows and columns; a
prompt's positions are one-dimensional, a picture's count on behind it.  Facts: docs/hart.md, section 4.5.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .sampling import look_up
from .schedule import Positions, Schedule

BASE = 10000.0


def grid_positions(positions: Positions, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Integer (py, px), each (B, N), on the rope grid: round(index * full / own) in fp32, half to even."""
    ratios = (np.float32(schedule.rope_grid) / np.float32(schedule.grids)).T.tolist()
    y, x = (look_up(ratio, positions)[..., 0] for ratio in ratios)
    return (positions.row * y).round(), (positions.col * x).round()


def rotation(positions: Positions, schedule: Schedule, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (B, N, head_dim / 2) float32: the height's angles first, then the width's.

    Raises:
        ValueError: head_dim is not a multiple of 4.
    """
    return rotation_at(*grid_positions(positions, schedule), head_dim)


def rotation_at(y: Tensor, x: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """The same of tokens at whole coordinates, each (B, N)."""
    frequency = _frequencies_2d(head_dim, y.device)
    return _tables(y[..., None] * frequency, x[..., None] * frequency)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Mix the two halves of every head: x (R, H, N, D), tables (R, N, D).  x's shape, float32 or better."""
    half = x.shape[-1] // 2
    swapped = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos.unsqueeze(1) + swapped * sin.unsqueeze(1)


def prompt_rotation(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (R, T, D) float32, of text tokens at positions (R, T)."""
    angles = positions.float()[..., None] * _frequencies(head_dim // 2, head_dim, positions.device)
    return _tables(angles, angles)


def picture_rotation(
    positions: Positions, schedule: Schedule, offset: Tensor, head_dim: int
) -> tuple[Tensor, Tensor]:
    """cos and sin, each (R, N, D) float32, of the picture's tokens.

    Args:
        offset: (R,) position of each row's last text token; rows and columns are counted on from there.

    Raises:
        ValueError: head_dim is not a multiple of 4.
    """
    return coordinate_rotation(*coordinates(positions, schedule, offset), head_dim)


def coordinate_rotation(y: Tensor, x: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (R, N, D) float32, at coordinates (R, N).  Raises as `picture_rotation`."""
    frequency = _frequencies_2d(head_dim, y.device)
    row, column = (place.float()[..., None] * frequency for place in (y, x))
    return _tables(row, row, column, column)


def grid_coordinates(positions: Positions, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """y and x, each (B or 1, N) float32, measured on the last grid."""
    heights, widths = zip(*schedule.grids, strict=True)
    y = positions.row / look_up(heights, positions)[..., 0] * schedule.rope_grid[0]
    x = positions.col / look_up(widths, positions)[..., 0] * schedule.rope_grid[1]
    return y, x


def coordinates(positions: Positions, schedule: Schedule, offset: Tensor) -> tuple[Tensor, Tensor]:
    """y and x, each (R, N) float32, measured on the last grid, behind the prompt of each row."""
    return behind_prompt(*grid_coordinates(positions, schedule), offset)


def behind_prompt(y: Tensor, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Grid coordinates (B or 1, N) behind the prompt of each row, each (R, N) float32."""
    found = (at.repeat(len(offset) // len(at), 1) if len(at) > 1 else at for at in (y, x))
    behind_y, behind_x = (at + offset.float()[:, None] for at in found)
    return behind_y, behind_x


def _frequencies_2d(head_dim: int, device: torch.device) -> Tensor:
    """(head_dim / 4,) of rows, and the same of columns."""
    if head_dim % 4:
        raise ValueError(
            f"a head of {head_dim} channels cannot carry two-dimensional rotary positions (needs a multiple "
            "of 4)"
        )
    return _frequencies(head_dim // 4, head_dim // 2, device)


def _frequencies(count: int, width: int, device: torch.device) -> Tensor:
    """10000^(-2 j / width), j = 0 .. count - 1."""
    return BASE ** (-2 * torch.arange(count, dtype=torch.float32, device=device) / width)


def _tables(*parts: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.cat(parts, dim=-1)
    return angles.cos(), angles.sin()
