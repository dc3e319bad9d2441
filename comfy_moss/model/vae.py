"""Convolutional codecs: image <-> the feature map that codes sum up to.

Stride 2^(levels - 1).  Module names follow the released files (`X.conv.weight`, `X.norm.weight`).
Facts: docs/infinity.md, section 7; docs/hart.md, section 9.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..ops import TORCH, Kernels
from .contents import count_of
from .layers import is_plain
from .quantize import Quantizer
from .strips import decode_in_strips

log = logging.getLogger(__name__)
CONVS = {"conv_in", "conv_out", "conv1", "conv2", "nin_shortcut"}


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a codec, all readable from its weights."""

    width: int  # channels at full resolution
    mult: tuple[int, ...]  # channel multiplier per level, full resolution first
    encoder_blocks: int  # residual blocks per level
    decoder_blocks: int
    channels: int  # c, channels of the code map

    @property
    def stride(self) -> int:
        """Pixels per cell of the code map."""
        return 2 ** (len(self.mult) - 1)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Iterable[int]]) -> VAEConfig:
        """Read the sizes from {canonical parameter name: shape}."""
        levels = count_of(shapes, r"encoder\.down\.(\d+)\.")
        width = tuple(shapes["encoder.conv_in.conv.weight"])[0]
        firsts = (f"encoder.down.{n}.block.0.conv1.conv.weight" for n in range(levels))
        mult = (tuple(shapes[first])[0] // width for first in firsts)
        return cls(
            width=width,
            mult=tuple(mult),
            encoder_blocks=count_of(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
            decoder_blocks=count_of(shapes, r"decoder\.up\.0\.block\.(\d+)\."),
            channels=tuple(shapes["encoder.conv_out.conv.weight"])[0],
        )


class Conv(nn.Module):
    """A convolution under the released files' extra name level."""

    def __init__(
        self, inputs: int, outputs: int, operations: Any, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = operations.Conv2d(inputs, outputs, kernel, stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Norm(nn.Module):
    """GroupNorm with 32 groups (24 where 32 does not divide the width), then swish."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.norm = operations.GroupNorm(24 if channels % 32 else 32, channels, eps=1e-6)

    def forward(self, x: Tensor, ops: Kernels = TORCH) -> Tensor:
        norm = self.norm
        if is_plain(norm, x):
            return ops.group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return F.silu(norm(x), inplace=True)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, operations: Any) -> None:
        super().__init__()
        self.norm1 = Norm(inputs, operations)
        self.conv1 = Conv(inputs, outputs, operations)
        self.norm2 = Norm(outputs, operations)
        self.conv2 = Conv(outputs, outputs, operations)
        same = inputs == outputs
        self.nin_shortcut = nn.Identity() if same else Conv(inputs, outputs, operations, kernel=1)

    def forward(self, x: Tensor, ops: Kernels = TORCH) -> Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x, ops)), ops))
        h += self.nin_shortcut(x)
        return h


class Down(nn.Module):
    """Halve the resolution: pad right and bottom by one, then a strided convolution."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, operations, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Double the resolution by repetition, then a convolution."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Attention(nn.Module):
    """Every position of a feature map (B, C, H, W) attends to every position; one head."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.norm = operations.GroupNorm(32, channels, eps=1e-6)
        self.qkv = operations.Conv2d(channels, 3 * channels, 1)
        self.proj_out = operations.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        out = F.scaled_dot_product_attention(q, k, v)  # the scale is C^-1/2
        return x + self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if asked for."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, operations: Any) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * blocks]
        self.block = nn.ModuleList(ResBlock(widths[n], outputs, operations) for n in range(blocks))
        self.attn = nn.ModuleList(
            Attention(outputs, operations) if attention else nn.Identity() for _ in range(blocks)
        )
        self.downsample = self.upsample = nn.Identity()

    def forward(self, x: Tensor, ops: Kernels = TORCH) -> Tensor:
        for block, attention in zip(self.block, self.attn, strict=True):
            x = attention(block(x, ops))
        return x


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them if asked for."""

    def __init__(self, channels: int, attention: bool, operations: Any) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, operations)
        self.attn_1 = Attention(channels, operations) if attention else nn.Identity()
        self.block_2 = ResBlock(channels, channels, operations)

    def forward(self, x: Tensor, ops: Kernels = TORCH) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, ops)), ops)


class Encoder(nn.Module):
    """Image -> features; `attention` at the lowest resolution."""

    def __init__(self, config: VAEConfig, attention: bool = False, operations: Any = nn) -> None:
        super().__init__()
        widths = [config.width * m for m in config.mult]
        last = len(widths) - 1
        self.conv_in = Conv(3, config.width, operations)
        self.down = nn.ModuleList()
        for n, (inputs, outputs) in enumerate(zip([config.width, *widths], widths, strict=False)):
            attends = attention and n == last
            self.down.append(Level(inputs, outputs, config.encoder_blocks, attends, operations))
            if n < last:
                self.down[n].downsample = Down(outputs, operations)
        self.mid = Middle(widths[-1], attention, operations)
        self.norm_out = Norm(widths[-1], operations)
        self.conv_out = Conv(widths[-1], config.channels, operations)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level.downsample(level(x))
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Features -> image; `attention` at the lowest resolution."""

    def __init__(self, config: VAEConfig, attention: bool = False, operations: Any = nn) -> None:
        super().__init__()
        widths = [config.width * m for m in config.mult]
        last = len(widths) - 1
        self.conv_in = Conv(config.channels, widths[-1], operations)
        self.mid = Middle(widths[-1], attention, operations)
        self.up = nn.ModuleList()  # indexed by level, so it runs from the last to the first
        for n, outputs in enumerate(widths):
            inputs = widths[min(n + 1, last)]
            attends = attention and n == last
            self.up.append(Level(inputs, outputs, config.decoder_blocks, attends, operations))
            if n > 0:
                self.up[n].upsample = Up(outputs, operations)
        self.norm_out = Norm(widths[0], operations)
        self.conv_out = Conv(widths[0], 3, operations)

    def forward(self, x: Tensor, ops: Kernels = TORCH) -> Tensor:
        x = self.mid(self.conv_in(x), ops)
        for level in reversed(self.up):
            x = level.upsample(level(x, ops))
        return self.conv_out(self.norm_out(x, ops))


class VAE(nn.Module):
    """Infinity's codec: images (B, 3, H, W), RGB in [-1, 1] <-> features (B, c, H / stride, W / stride).

    Args:
        operations: classes of the layers, see `layers`.
    """

    def __init__(self, config: VAEConfig, operations: Any = nn) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, operations=operations)
        self.decoder = Decoder(config, operations=operations)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.decoder.conv_in.conv.bias.dtype

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> features (B, c, H / stride, W / stride), not yet quantised."""
        return one_by_one(self.encoder, image)

    def decode(self, codes: Tensor, ops: Kernels = TORCH) -> Tensor:
        """Summed codes (B, c, h, w) -> image (B, 3, h * stride, w * stride) in [-1, 1]."""
        return one_by_one(lambda one: decode_as_fits(self.decoder, one, ops), codes).clamp(-1, 1)


def plain_names(used: Iterable[str]) -> dict[str, str]:
    """Names of VAE's parameters -> names in the file, of either naming."""
    used = list(used)
    names = {_with_inner_level(name): name for name in used}
    return names | {name: name for name in used if name in names}  # the exact name wins


def _with_inner_level(name: str) -> str:
    """Insert the `.conv` or `.norm` level that some files leave out."""
    parts = name.split(".")
    above, layer = parts[-3:-1] if len(parts) > 2 else ("", "")
    if layer in CONVS or (layer == "conv" and above in ("downsample", "upsample")):
        parts.insert(-1, "conv")
    elif "norm" in layer and layer != "norm":
        parts.insert(-1, "norm")
    return ".".join(parts)


class Tokenizer(nn.Module):
    """HART's codec, with its quantiser; images and features as for `VAE`."""

    def __init__(self, config: VAEConfig, quantizer: Quantizer, operations: Any = nn) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, True, operations)
        self.decoder = Decoder(config, True, operations)
        self.quant_conv = operations.Conv2d(config.channels, config.channels, 3, padding=1)
        self.post_quant_conv = operations.Conv2d(config.channels, config.channels, 3, padding=1)
        self.quantize = quantizer

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; the quantiser is float32."""
        return self.post_quant_conv.bias.dtype

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> features (B, c, H / stride, W / stride), not yet quantised."""
        return one_by_one(lambda one: self.quant_conv(self.encoder(one)), image)

    def decode(self, codes: Tensor, ops: Kernels = TORCH) -> Tensor:
        """Summed codes (B, c, h, w) -> image (B, 3, h * stride, w * stride) in [-1, 1]."""

        def decode(one: Tensor) -> Tensor:
            return decode_as_fits(self.decoder, self.post_quant_conv(one), ops)

        return one_by_one(decode, codes).clamp(-1, 1)


def one_by_one(code: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """A codec over a batch, so that a picture is the same as alone: other batch sizes round otherwise."""
    return torch.cat([code(one[None]) for one in batch]) if len(batch) > 1 else code(batch)


def decode_as_fits(decoder: Decoder, features: Tensor, ops: Kernels = TORCH) -> Tensor:
    """Decode at once, or in strips where the device has too little memory for that.

    On a CPU, and in half precision on a GPU, channels lie side by side, as convolutions compute there; else
    they would be turned round before and after each of them.
    """
    if features.device.type == "cpu" or (features.is_cuda and features.dtype != torch.float32):
        features = features.contiguous(memory_format=torch.channels_last)
    try:
        return decoder(features, ops).contiguous()
    except torch.OutOfMemoryError:
        log.warning("the picture is decoded in strips: this device has too little memory to do it at once")
    return decode_in_strips(decoder, features).contiguous()


# --- previews -----------------------------------------------------------------------------------------------

# Latent to RGB: what a sum of codes looks like, by one linear map from the channels of a cell to its
# colour.
#
# The same as the host's own latent previews: thousands of times cheaper than the decoder, and coarse.
# Nobody has published the factors for these codecs, so they are fitted to each: its encoder is shown a few
# tiny pictures of shapes, and least squares find which colour goes with which code.

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
        """Sums of codes (B, c, h, w) -> pictures (B, h, w, 3) in [0, 1], float32 on the CPU, one pixel a
        cell.
        """
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
    codes, colours = (
        _cells(values) for values in (encode(images).float().cpu(), F.avg_pool2d(images, stride))
    )
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
    """Pictures (MAPS, 3, H, W) in [-1, 1]: a box or an ellipse over another before a ground, of one colour
    each, pure ones among
    them.  Most codecs were trained on pictures more like these than on patches or noise."""
    chance, side = torch.Generator().manual_seed(0), SIDE * stride
    grid = torch.stack(torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij"))
    pictures = _colours(chance).expand(-1, -1, side, side)
    for _ in range(2):
        centre, radius = (
            torch.rand(MAPS, 2, 1, 1, generator=chance),
            0.1 + 0.3 * torch.rand(MAPS, 2, 1, 1, generator=chance),
        )
        distance = ((grid - centre) / radius).abs()  # (MAPS, 2, H, W)
        ellipse = torch.rand(MAPS, 1, 1, generator=chance) < 0.5
        inside = torch.where(ellipse, distance.square().sum(1), distance.amax(1)) < 1
        pictures = torch.where(inside[:, None], _colours(chance), pictures)
    return pictures


def _colours(chance: torch.Generator) -> Tensor:
    """(MAPS, 3, 1, 1), every other channel at an end of its range."""
    return (4 * torch.rand(MAPS, 3, 1, 1, generator=chance) - 2).clamp(-1, 1)
