"""Convolutional codec of Infinity: image <-> the feature map that bits sum up to.  Stride 2^(levels-1), no attention.

Module names follow the released files (`X.conv.weight`, `X.norm.weight`).  Facts: Infinity specification, section 7.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


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
        levels = _count(shapes, r"encoder\.down\.(\d+)\.")
        width = tuple(shapes["encoder.conv_in.conv.weight"])[0]
        mult = (tuple(shapes[f"encoder.down.{n}.block.0.conv1.conv.weight"])[0] // width for n in range(levels))
        return cls(
            width=width,
            mult=tuple(mult),
            encoder_blocks=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
            decoder_blocks=_count(shapes, r"decoder\.up\.0\.block\.(\d+)\."),
            channels=tuple(shapes["encoder.conv_out.conv.weight"])[0],
        )


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max(int(match[1]) for match in map(re.compile(pattern).match, names) if match)


class Conv(nn.Module):
    """A convolution under the released files' extra name level."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Norm(nn.Module):
    """GroupNorm with 32 groups (24 where 32 does not divide the width), then swish, as every use of it needs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(24 if channels % 32 else 32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs)
        self.conv1 = Conv(inputs, outputs)
        self.norm2 = Norm(outputs)
        self.conv2 = Conv(outputs, outputs)
        self.nin_shortcut = Conv(inputs, outputs, kernel=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.nin_shortcut(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class Down(nn.Module):
    """Halve the resolution: pad right and bottom by one, then a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Double the resolution by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _level(inputs: int, outputs: int, blocks: int) -> nn.Module:
    level = nn.Module()
    level.block = nn.ModuleList(ResBlock(inputs if n == 0 else outputs, outputs) for n in range(blocks))
    return level


def _middle(channels: int) -> nn.Module:
    middle = nn.Module()
    middle.block_1 = ResBlock(channels, channels)
    middle.block_2 = ResBlock(channels, channels)
    return middle


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.mult]
        self.conv_in = Conv(3, config.width)
        self.down = nn.ModuleList()
        for n, (inputs, outputs) in enumerate(zip([config.width, *widths], widths, strict=False)):
            level = _level(inputs, outputs, config.encoder_blocks)
            if n < len(widths) - 1:
                level.downsample = Down(outputs)
            self.down.append(level)
        self.mid = _middle(widths[-1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = Conv(widths[-1], config.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        x = self.mid.block_2(self.mid.block_1(x))
        return self.conv_out(self.norm_out(x))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.mult]
        self.conv_in = Conv(config.channels, widths[-1])
        self.mid = _middle(widths[-1])
        self.up = nn.ModuleList()  # indexed by level, so it runs from the last to the first
        for n, outputs in enumerate(widths):
            level = _level(widths[min(n + 1, len(widths) - 1)], outputs, config.decoder_blocks)
            if n > 0:
                level.upsample = Up(outputs)
            self.up.append(level)
        self.norm_out = Norm(widths[0])
        self.conv_out = Conv(widths[0], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid.block_2(self.mid.block_1(self.conv_in(x)))
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(self.norm_out(x))


class VAE(nn.Module):
    """Codec between images (B, 3, H, W) in [-1, 1], RGB, and feature maps (B, c, H / stride, W / stride)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> features (B, c, H / stride, W / stride), not yet quantised."""
        return self.encoder(image)

    def decode(self, codes: Tensor) -> Tensor:
        """Summed codes (B, c, h, w) -> image (B, 3, h * stride, w * stride) in [-1, 1]."""
        return self.decoder(codes).clamp(-1, 1)
