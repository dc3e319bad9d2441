"""Two-dimensional rotary positions shared by all scales.

A token's position is measured on the last grid of the ratio's 1M schedule, so that tokens of different scales that show
the same place of the picture have the same position.  Facts: Infinity specification, section 5.

HART's tables are as wide as a head (D), because the swapped halves of a head are not those of rows and columns; the
prompt's positions are one-dimensional, the picture's count on behind it.  Facts: HART specification, section 4.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schedule import Positions, Schedule


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


BASE = 10000.0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Mix the two halves of every head: x (R, H, N, D), tables (R, N, D).  Returns x's shape, float32 or better."""
    half = x.shape[-1] // 2
    swapped = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos.unsqueeze(1) + swapped * sin.unsqueeze(1)


def prompt_rotation(places: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (R, T, D) float32, of the prompt's slots; places (R, T) are their position ids."""
    angles = places.float()[..., None] * _frequencies(head_dim // 2, head_dim, places.device)
    return _tables([angles, angles])


def picture_rotation(positions: Positions, schedule: Schedule, offset: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (R, N, D) float32, of the picture's tokens.

    Args:
        offset: (R,) position of each row's last slot of the prompt; rows and columns are counted on from there.

    Raises:
        ValueError: head_dim is not a multiple of 4.
    """
    return place_rotation(*coordinates(positions, schedule, offset), head_dim)


def place_rotation(y: Tensor, x: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (R, N, D) float32, of places given by their coordinates (R, N).  Raises as `picture_rotation`."""
    if head_dim % 4:
        raise ValueError(f"a head of {head_dim} channels cannot carry two-dimensional rotary positions (needs a multiple of 4)")
    frequency = _frequencies(head_dim // 4, head_dim // 2, y.device)
    row, column = (place.float()[..., None] * frequency for place in (y, x))
    return _tables([row, row, column, column])


def coordinates(positions: Positions, schedule: Schedule, offset: Tensor) -> tuple[Tensor, Tensor]:
    """y and x, each (R, N) float32, measured on the last grid, behind the prompt of each row."""
    grids = torch.tensor(schedule.grids, dtype=torch.float32, device=offset.device)[positions.scale]  # (B or 1, N, 2)
    full, places = schedule.rope_grid, []
    for axis, cell in enumerate((positions.row, positions.col)):
        place = cell / grids[..., axis] * full[axis]
        place = place.repeat(len(offset) // len(place), 1) if len(place) > 1 else place
        places.append(place + offset.float()[:, None])
    return places[0], places[1]


def _frequencies(count: int, width: int, device: torch.device) -> Tensor:
    """10000^(-2 j / width), j = 0 .. count - 1."""
    return BASE ** (-2 * torch.arange(count, dtype=torch.float32, device=device) / width)


def _tables(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    angles = torch.cat(parts, dim=-1)
    return angles.cos(), angles.sin()
