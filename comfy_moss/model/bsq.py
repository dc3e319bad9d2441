"""Binary spherical quantisation over scales: bits <-> codes, and the resamplings of the residual pyramid.

A token of d bits is the point (2 * bit - 1) / sqrt(c) on the unit sphere of the codec's c channels (c = d, or d / 4 with
spatial patchify).  Facts: Infinity specification, sections 6 and 7.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import Grid


def tokens_to_map(tokens: Tensor, grid: Grid, patchify: bool) -> Tensor:
    """(B, h*w, d) raster tokens -> (B, c, H, W) map; patchify unfolds 4 channels into a 2 x 2 block of the doubled grid."""
    image = tokens.transpose(1, 2).unflatten(2, grid)
    return F.pixel_shuffle(image, 2) if patchify else image


def map_to_tokens(image: Tensor, patchify: bool) -> Tensor:
    """(B, c, H, W) map -> (B, h*w, d) raster tokens; the inverse of tokens_to_map."""
    image = F.pixel_unshuffle(image, 2) if patchify else image
    return image.flatten(2).transpose(1, 2)


def bits_to_codes(bits: Tensor, channels: int) -> Tensor:
    """Bits in {0, 1} of any shape -> codes +-1/sqrt(channels), float32."""
    return (2 * bits.float() - 1) / channels**0.5


def resample(codes: Tensor, grid: Grid) -> Tensor:
    """Bilinear, half-pixel centres, no antialiasing, also when shrinking: the one resampling of drawing (B, c, H, W)."""
    if codes.shape[-2:] == torch.Size(grid):
        return codes
    return F.interpolate(codes, size=tuple(grid), mode="bilinear", align_corners=False)


def quantize_scales(features: Tensor, grids: Sequence[Grid]) -> tuple[list[Tensor], Tensor]:
    """Encode a feature map into the bits of every scale, coarse to fine, each coding what the coarser ones left over.

    Args:
        features: (B, c, H, W) output of the codec's encoder.
        grids: codec grids, coarsest first; the last one is (H, W).

    Returns:
        bits per scale, each (B, c, h, w) bool, and z (B, c, H, W), the sum of all codes, which the codec decodes.

    Raises:
        ValueError: the last grid is not the size of the feature map.
    """
    size = tuple(features.shape[-2:])
    if tuple(grids[-1]) != size:
        raise ValueError(f"the schedule ends at {tuple(grids[-1])} but the image encodes to {size}")
    total = torch.zeros_like(features)
    bits = []
    for grid in grids:
        residual = features - total
        if tuple(grid) != size:
            residual = F.interpolate(residual, size=tuple(grid), mode="area")
        bits.append(residual > 0)
        total = total + resample(bits_to_codes(bits[-1], features.shape[1]), size)
    return bits, total
