"""Colours of one picture for another: statistics of the whole (AdaIN), and the low frequencies (wavelet).

What an upscaler draws anew may drift in colour; the picture it was made from knows better.  Both steps are
NSARM's, as its authors run them, on any picture.  Facts: docs/fine-tunes.md, section 2.4.

Pictures are (B, H, W, 3) in [0, 1], as ComfyUI passes them, and are read and returned in steps of 1/255.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from .images import to_bytes

LEVELS = 5  # of the wavelet: blurs of reach 1, 2, 4, 8, 16
EPSILON = 1e-5  # added to variances


def fix_colours(picture: Tensor, reference: Tensor, statistics: bool = True, wavelet: bool = True) -> Tensor:
    """A picture (B, H, W, 3) with the colours of a reference (B or 1, h, w, 3), which may be of another size.

    Args:
        statistics: give every channel the reference's mean and spread.
        wavelet: then give the picture the reference's low frequencies, keeping its own high ones.

    Raises:
        ValueError: the numbers of pictures do not pair up.
    """
    if len(reference) not in (1, len(picture)):
        raise ValueError(
            f"{len(picture)} pictures cannot take the colours of {len(reference)}; give one, or as many"
        )
    theirs = resized(reference, picture.shape[1:3]).to(picture.device)
    ours, theirs = (rearrange(one, "b h w c -> b c h w") for one in (_eight_bit(picture), theirs))
    if statistics:
        ours = _eight_bit(with_statistics(ours, theirs))
    if wavelet:
        ours = _eight_bit(with_low_frequencies(ours, theirs))
    return rearrange(ours, "b c h w -> b h w c")


def with_statistics(ours: Tensor, theirs: Tensor) -> Tensor:
    """Ours (B, c, H, W), every channel shifted and stretched to the mean and spread of theirs."""
    (mean, spread), (wanted_mean, wanted_spread) = map(_statistics, (ours, theirs))
    return (ours - mean) / spread * wanted_spread + wanted_mean


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(image, dim=(2, 3), keepdim=True)
    return mean, (variance + EPSILON).sqrt()


def with_low_frequencies(ours: Tensor, theirs: Tensor) -> Tensor:
    """Ours (B, c, H, W) with its low frequencies replaced by those of theirs."""
    return ours - _low(ours) + _low(theirs)


def _low(image: Tensor) -> Tensor:
    for level in range(LEVELS):
        image = _blur(image, 2**level)
    return image


def _blur(image: Tensor, reach: int) -> Tensor:
    """Weights 1 2 1 in both directions, at pixels `reach` apart; edges are repeated."""
    weights = torch.tensor([1.0, 2.0, 1.0], device=image.device)
    kernel = (torch.outer(weights, weights) / 16).expand(image.shape[1], 1, 3, 3)
    around = F.pad(image, (reach,) * 4, mode="replicate")
    return F.conv2d(around, kernel, dilation=reach, groups=image.shape[1])


def _eight_bit(image: Tensor) -> Tensor:
    return to_bytes(image).float() / 255


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, h, w, 3) at another (height, width), bicubic, (B, height, width, 3)."""
    pictures = [Image.fromarray(one.numpy()) for one in to_bytes(images).cpu()]
    found = [picture.resize(tuple(size)[::-1], Image.Resampling.BICUBIC) for picture in pictures]
    flat = torch.frombuffer(bytearray(b"".join(picture.tobytes() for picture in found)), dtype=torch.uint8)
    return flat.view(len(found), *size, 3) / 255
