"""Latent to RGB: what a sum of codes looks like, by one linear map from the channels of a cell to its colour.

The same as the host's own latent previews: thousands of times cheaper than the decoder, and coarse.  Nobody has published
the factors for these codecs, so they are fitted to each: its encoder is shown a few tiny pictures of shapes, and least squares
find which colour goes with which code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAPS, SIDE = 64, 4  # pictures shown to the encoder, and cells along the side of each
RIDGE = 1e-3  # of the squared length of a channel: keeps channels that say nothing about colour at zero


@dataclass(frozen=True)
class LatentRGB:
    """The map of one codec.

    Attributes:
        factors: (c, 3).
        bias: (3,).
    """

    factors: Tensor
    bias: Tensor

    def __call__(self, total: Tensor) -> Tensor:
        """Sums of codes (B, c, h, w) -> pictures (B, h, w, 3) in [0, 1], float32 on the CPU, one pixel a cell."""
        rgb = torch.tensordot(total.float(), self.factors.to(total.device), dims=([1], [0])).cpu() + self.bias
        return ((rgb + 1) / 2).clamp(0, 1)


@torch.inference_mode()
def fit_latent_rgb(encode: Callable[[Tensor], Tensor], stride: int) -> LatentRGB:
    """Fit the map to a codec.

    Args:
        encode: images (B, 3, H, W) in [-1, 1] -> features (B, c, H / stride, W / stride).
        stride: pixels per cell.
    """
    images = _shapes(stride)
    codes, colours = (_cells(values) for values in (encode(images).float().cpu(), F.avg_pool2d(images, stride)))
    centre, bias = codes.mean(0), colours.mean(0)
    codes, colours = codes - centre, colours - bias
    square = codes.T @ codes
    ridge = RIDGE * square.diagonal().mean().clamp_min(RIDGE)
    factors = torch.linalg.solve(square + ridge * torch.eye(len(square)), codes.T @ colours)
    return LatentRGB(factors, bias - centre @ factors)


def _cells(values: Tensor) -> Tensor:
    """(B, n, h, w) -> (B * h * w, n)."""
    return values.movedim(1, -1).flatten(0, 2)


def _shapes(stride: int) -> Tensor:
    """Pictures (MAPS, 3, H, W) in [-1, 1]: a box or an ellipse over another before a ground, of one colour each, pure ones among
    them.  Most codecs were trained on pictures more like these than on patches or noise."""
    chance, side = torch.Generator().manual_seed(0), SIDE * stride
    grid = torch.stack(torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij"))
    pictures = _colours(chance).expand(-1, -1, side, side)
    for _ in range(2):
        centre, radius = torch.rand(MAPS, 2, 1, 1, generator=chance), 0.1 + 0.3 * torch.rand(MAPS, 2, 1, 1, generator=chance)
        distance = ((grid - centre) / radius).abs()  # (MAPS, 2, H, W)
        ellipse = torch.rand(MAPS, 1, 1, generator=chance) < 0.5
        inside = torch.where(ellipse, distance.square().sum(1), distance.amax(1)) < 1
        pictures = torch.where(inside[:, None], _colours(chance), pictures)
    return pictures


def _colours(chance: torch.Generator) -> Tensor:
    """(MAPS, 3, 1, 1), every other channel at an end of its range."""
    return (4 * torch.rand(MAPS, 3, 1, 1, generator=chance) - 2).clamp(-1, 1)
