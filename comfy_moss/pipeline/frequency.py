"""Frequency: how busy the draft is around every place (paper, equation 3), and what each step contributed
(equation 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_CONSTANT = 1e-12  # spread, as a part of the largest value, that is rounding in float64


def frequency_map(total: Tensor, window: int = 3) -> Tensor:
    """Local variance of the draft, averaged over channels.

    Args:
        total: R, (B, c, H, W).
        window: side of the square window, odd, >= 3.  At the border it covers what lies inside the picture.

    Returns:
        (B, H, W), >= 0.

    Raises:
        ValueError: the window is even or below 3.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"the frequency window must be odd and at least 3, got {window}")
    total = total.cpu() if total.device.type == "mps" else total  # which has no float64
    # so that the difference below stays exact
    centred = total.double() - total.double().mean(dim=(2, 3), keepdim=True)
    mean, square = (
        F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=False)
        for x in (centred, centred.square())
    )
    return (square - mean.square()).clamp_min(0).mean(dim=1).float()


@dataclass(frozen=True)
class Contribution:
    """Who drew what.

    Attributes:
        drafter, refiner: (B, H, W) float32 on the CPU, >= 0: the length of the code vector that each added at
            a place.
        correlation: Pearson's r over a picture's places of the refiner's contribution and the draft's
            frequency, in [-1, 1], one a picture; 0 where one of them is the same everywhere.
        drafter_correlation: the same of the drafter's contribution.
    """

    drafter: Tensor
    refiner: Tensor
    correlation: tuple[float, ...]
    drafter_correlation: tuple[float, ...]


def contribution(draft_total: Tensor, final_total: Tensor, frequency: Tensor) -> Contribution:
    """Split a finished picture's codes into the draft's part R and the rest.

    Args:
        draft_total: R, (B, c, H, W).
        final_total: (B, c, H, W), the sum of codes that is decoded.
        frequency: (B, H, W), of the draft.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if final_total.shape != draft_total.shape or frequency.shape != draft_total[:, 0].shape:
        raise ValueError(
            f"the draft's codes {tuple(draft_total.shape)}, the final codes {tuple(final_total.shape)} and "
            f"the frequency map {tuple(frequency.shape)} do not belong to one picture; take all three from "
            "the same draft"
        )
    # not every device has float64
    draft, final, busy = (x.cpu().double() for x in (draft_total, final_total, frequency))
    drafter, refiner = (torch.linalg.vector_norm(part, dim=1) for part in (draft, final - draft))
    return Contribution(
        drafter.float(), refiner.float(), _correlation(refiner, busy), _correlation(drafter, busy)
    )


def _correlation(a: Tensor, b: Tensor) -> tuple[float, ...]:
    """Pearson's r of two maps (B, H, W), one a picture; 0 where one is constant."""
    return tuple(_pearson(x, y) for x, y in zip(a.flatten(1), b.flatten(1), strict=True))


def _pearson(a: Tensor, b: Tensor) -> float:
    units = []
    for x in (a, b):
        centred = x - x.mean()
        length = centred.norm()
        if not length > _CONSTANT * x.norm():
            return 0.0
        units.append(centred / length)
    return min(1.0, max(-1.0, torch.dot(*units).item()))
