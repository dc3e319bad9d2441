"""Quantisation over scales: Infinity's binary spherical one (bits) and HART's vector quantiser (a codebook).

BSQ: a token of d bits is the point (2 * bit - 1) / sqrt(c) on the unit sphere of the codec's c channels; c is
d or, with patchify, d / 4.  Facts: docs/infinity.md, sections 6 and 7.3.

VQ: a codebook, and a small convolution (phi) on what every scale but the last adds.  Shapes: B pictures, c
channels of the code map, P its side, V codes.  Facts: docs/hart.md, sections 6 and 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..ops import area_mean
from .schedule import Grid


def tokens_to_map(tokens: Tensor, grid: Grid, patchify: bool) -> Tensor:
    """(B, h*w, d) raster tokens -> (B, c, H, W) map; patchify unfolds 4 numbers into 2 x 2 cells."""
    side = 2 if patchify else 1
    return rearrange(tokens, "b (h w) (c y x) -> b c (h y) (w x)", h=grid[0], y=side, x=side)


def map_to_tokens(image: Tensor, patchify: bool) -> Tensor:
    """(B, c, H, W) map -> (B, h*w, d) raster tokens; the inverse of tokens_to_map."""
    side = 2 if patchify else 1
    return rearrange(image, "b c (h y) (w x) -> b (h w) (c y x)", y=side, x=side)


def bits_to_codes(bits: Tensor, channels: int) -> Tensor:
    """Bits in {0, 1} of any shape -> codes +-1/sqrt(channels), float32."""
    return (2 * bits.float() - 1) / channels**0.5


def resample(codes: Tensor, grid: Grid) -> Tensor:
    """Bilinear, half-pixel centres, no antialiasing, also when shrinking: BSQ's resampling (B, c, H, W)."""
    if codes.shape[-2:] == torch.Size(grid):
        return codes
    return F.interpolate(codes, size=tuple(grid), mode="bilinear", align_corners=False)


def quantize_scales(features: Tensor, grids: Sequence[Grid]) -> tuple[list[Tensor], Tensor]:
    """Encode a feature map into bits, coarse to fine, each scale coding what the coarser ones left over.

    Args:
        features: (B, c, H, W) output of the codec's encoder.
        grids: codec grids, coarsest first; the last one is (H, W).

    Returns:
        bits per scale, each (B, c, h, w) bool, and the sum of all codes (B, c, H, W), which gets decoded.

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
            residual = area_mean(residual, grid)
        bits.append(residual > 0)
        total = total + resample(bits_to_codes(bits[-1], features.shape[1]), size)
    return bits, total


def upsample(image: Tensor, grid: Grid) -> Tensor:
    """Bicubic to a larger grid, (B, c, h, w) -> (B, c, H, W)."""
    if image.shape[-2:] == torch.Size(grid):
        return image
    return F.interpolate(image, size=tuple(grid), mode="bicubic", align_corners=False)


def downsample(image: Tensor, grid: Grid) -> Tensor:
    """Means over the cells of a smaller grid, (B, c, H, W) -> (B, c, h, w)."""
    return image if image.shape[-2:] == torch.Size(grid) else area_mean(image, grid)


def phi_index(scale: int, scales: int, count: int) -> int:
    """Which of `count` convolutions a scale uses: the nearest by its share of the way through the scales."""
    share = scale / (scales - 1) if scales > 1 else 0.0
    ticks = np.linspace(1 / 3 / count, 1 - 1 / 3 / count, count)  # rounded as released: it decides ties
    return int(np.abs(ticks - share).argmin())


class Quantizer(nn.Module):
    """Codebook and phi convolutions; parameter names are those of the released file.

    Args:
        phi_share: of the convolution in phi, the rest being its input.
        cosine: nearest means the smallest angle, not the smallest distance.
    """

    def __init__(
        self, codes: int, channels: int, convolutions: int = 4, phi_share: float = 0.5, cosine: bool = False
    ) -> None:
        super().__init__()
        self.phi_share, self.cosine = phi_share, cosine
        self.embedding = nn.Embedding(codes, channels)
        phis = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convolutions))
        self.quant_resi = nn.ModuleDict({"qresi_ls": phis})

    @property
    def codebook(self) -> Tensor:
        """(V, c)."""
        return self.embedding.weight

    def phi(self, image: Tensor, scale: int, scales: int) -> Tensor:
        """What a scale's upsampled codes (B, c, P, P) add to the sum."""
        convolutions = self.quant_resi["qresi_ls"]
        conv = convolutions[phi_index(scale, scales, len(convolutions))]
        blurred = F.conv2d(image, conv.weight.to(image), conv.bias.to(image), padding=1)
        return (1 - self.phi_share) * image + self.phi_share * blurred

    def nearest(self, vectors: Tensor) -> Tensor:
        """Code numbers (...) int64 of vectors (..., c)."""
        flat, book = vectors.reshape(-1, vectors.shape[-1]), self.codebook.to(vectors.device)
        if self.cosine:
            distance = -F.normalize(flat, dim=-1) @ F.normalize(book, dim=-1).T
        else:
            distance = flat.square().sum(1, keepdim=True) + book.square().sum(1) - 2 * flat @ book.T
        return distance.argmin(dim=1).view(vectors.shape[:-1])

    def quantize(
        self, features: Tensor, sides: Sequence[int], hybrid: bool = True
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Encode features into the codes of every scale, each coding what the coarser ones left over.

        Args:
            features: (B, c, P, P) output of the tokenizer's encoder.
            sides: of the square scales, coarsest first; the last is P.
            hybrid: leave phi out at the last scale, as in drawing.

        Returns:
            code numbers per scale (B, side^2), the sum of codes (B, c, P, P) after each scale, and what is
            left for the last scale to say, (B, c, P, P), which codes say only in part.

        Raises:
            ValueError: the last side is not P.
        """
        full, side, scales = tuple(features.shape[-2:]), sides[-1], len(sides)
        if full != (side, side):
            raise ValueError(
                f"the schedule ends at {side} x {side} but the image encodes to {full[0]} x {full[1]}"
            )
        total, codes, totals = torch.zeros_like(features), [], []
        for scale, side in enumerate(sides):
            left = features - total
            codes.append(self.nearest(rearrange(downsample(left, (side, side)), "b c h w -> b (h w) c")))
            image = rearrange(self.codebook.to(codes[-1].device)[codes[-1]], "b (h w) c -> b c h w", h=side)
            final = scale == scales - 1
            added = image if final and hybrid else self.phi(upsample(image, full), scale, scales)
            total = total + added
            totals.append(total)
        return codes, totals, left
