"""Decoding in strips: the codec's decoder in little memory, equal to decoding at once.

Every convolution takes a strip of rows after the other, with the rows that it needs around them; what a norm
has to know of the whole map, mean and variance of every group, is taken of the whole map first.  So there are
no seams, and nothing is computed twice: only rounding differs.  At 1024 x 1024 pixels in bfloat16 the largest
maps together take 1 GiB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .vae import Decoder, Norm, ResBlock

PIXELS = 2**16  # of a strip, about
Prepare = Callable[[Tensor], Tensor]  # rows of a map (B, C, n, W) -> what a convolution reads


def decode_in_strips(decoder: Decoder, codes: Tensor, pixels: int = PIXELS) -> Tensor:
    """Features (B, c, h, w) -> image (B, 3, h * stride, w * stride), as `decoder(codes)`."""
    x = decoder.mid(decoder.conv_in(codes))
    for level in reversed(decoder.up):
        for block, attention in zip(level.block, level.attn, strict=True):
            x = attention(_block(block, x, pixels))
        if not isinstance(level.upsample, nn.Identity):
            x = _convolved(level.upsample.conv.conv, x, pixels, _doubled, factor=2)
    return _convolved(decoder.conv_out.conv, x, pixels, normed(decoder.norm_out, x, pixels))


def _block(block: ResBlock, x: Tensor, pixels: int) -> Tensor:
    h = _convolved(block.conv1.conv, x, pixels, normed(block.norm1, x, pixels))
    h = _convolved(block.conv2.conv, h, pixels, normed(block.norm2, h, pixels))
    for top, bottom in _strips(x, pixels):
        h[:, :, top:bottom] += block.nin_shortcut(x[:, :, top:bottom])
    return h


def _convolved(conv: nn.Module, x: Tensor, pixels: int, prepare: Prepare, factor: int = 1) -> Tensor:
    """A 3 x 3 convolution of what `prepare` makes of x (B, C, H, W), `factor` times as large.

    The layer itself pads by a row of zeros, which inside of the map is wrong: what it makes of it is cut off.
    """
    batch, _, height, width = x.shape
    turned = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if turned else torch.contiguous_format
    size = (batch, conv.out_channels, factor * height, factor * width)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
    for top, bottom in _strips(x, pixels // factor**2):
        first, last = max(0, top - 1), min(height, bottom + 1)
        part = prepare(x[:, :, first:last])
        above, end = factor * (top - first), factor * (bottom - first)
        out[:, :, factor * top : factor * bottom] = conv(part)[:, :, above:end]
    return out


def normed(norm: Norm, x: Tensor, pixels: int) -> Prepare:
    """The norm of x (B, C, H, W) and its SiLU, strip by strip, by mean and variance of the whole."""
    mean, gain = moments(x, norm.norm.num_groups, norm.norm.eps, pixels)
    each = x.shape[1] // norm.norm.num_groups
    gain = gain.repeat_interleave(each, dim=1) * norm.norm.weight.to(gain)  # (B, C)
    shift = norm.norm.bias.to(gain) - mean.repeat_interleave(each, dim=1) * gain

    def prepare(rows: Tensor) -> Tensor:
        value = torch.addcmul(shift[..., None, None], rows.float(), gain[..., None, None])
        return F.silu(value, inplace=True).to(rows.dtype)

    return prepare


def moments(x: Tensor, groups: int, eps: float, pixels: int = PIXELS) -> tuple[Tensor, Tensor]:
    """Mean, and one over the standard deviation, of every group of x (B, C, H, W): (B, groups) float32.

    Merged from those of strips (Chan, Golub and LeVeque 1979), so that nothing cancels.
    """
    count, mean, spread = 0, x.new_zeros(len(x), groups, dtype=torch.float32), 0.0
    for top, bottom in _strips(x, pixels):
        part = x[:, :, top:bottom].float().reshape(len(x), groups, -1)
        variance, own = torch.var_mean(part, dim=2, correction=0)
        added, step = part.shape[2], own - mean
        count += added
        mean = mean + step * (added / count)
        spread = spread + variance * added + step.square() * ((count - added) * added / count)
    return mean, torch.rsqrt(spread / count + eps)


def _strips(x: Tensor, pixels: int) -> list[tuple[int, int]]:
    """First row and end of every strip."""
    rows = max(1, pixels // x.shape[3])
    return [(top, min(x.shape[2], top + rows)) for top in range(0, x.shape[2], rows)]


def _doubled(rows: Tensor) -> Tensor:
    return F.interpolate(rows, scale_factor=2.0, mode="nearest")
