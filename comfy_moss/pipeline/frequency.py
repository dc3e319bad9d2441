"""Frequency map: how busy the draft is around every place (paper, equation 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
    centred = total.double() - total.double().mean(dim=(2, 3), keepdim=True)  # so that the difference below stays exact
    mean, square = (
        F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=False) for x in (centred, centred.square())
    )
    return (square - mean.square()).clamp_min(0).mean(dim=1).float()
