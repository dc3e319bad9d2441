"""NSARM: Infinity, fine-tuned to enlarge a damaged picture four times.

A network of its own (the maps) turns the codec's features of the small picture into the bits of the first
scales; the transformer draws the rest.  Facts: docs/fine-tunes.md, section 2.

Shapes: B pictures, c channels of the codec, P = 32 cells a side of the small picture's features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..ops import area_mean
from .backbone import PicturedText
from .contents import count_of
from .infinity import InfinityBackbone, InfinityCondition, InfinityConfig, InfinityTransformer
from .quantize import map_to_tokens
from .schedule import Grid, Schedule

SMALL = 256  # pixels a side of the picture to enlarge
TIMES = 4
SIDE = 32  # P
SIDES = (2, 4, 8, 12, 16, 24, 32)  # cells a side of the maps: the codec grids of the first scales
HEADS = {64: 4, 128: 4, 256: 8, 384: 8, 512: 8, 768: 12, 1024: 16}  # by width: no tensor shows it


@dataclass(frozen=True)
class MapConfig:
    """Sizes of the maps; all but the heads are readable from the weights.

    Attributes:
        channels: c.
        extractor: channels of the shared convolutions.
        widths, layers, heads: of each map's transformer.
    """

    channels: int
    extractor: tuple[int, int]
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]

    @classmethod
    def from_shapes(
        cls, shapes: Mapping[str, Iterable[int]], heads: Sequence[int] | None = None
    ) -> MapConfig:
        """Read the sizes from {name below `map_transformer.`: shape}.

        Args:
            heads: of each map; None = those of the released widths.

        Raises:
            ValueError: widths whose number of heads is not known.
        """
        rows = {name: tuple(shape) for name, shape in shapes.items()}
        maps = range(count_of(rows, r"feature_transforms\.(\d+)\."))
        widths = [rows[f"feature_transforms.{n}.3.weight"][0] for n in maps]
        if heads is None and not all(width in HEADS for width in widths):
            raise ValueError(f"no number of heads is known for maps of {widths} channels")
        first, second = (rows[f"feature_extractor.{n}.weight"][0] for n in (0, 3))
        layers = [count_of(rows, rf"transformers\.{n}\.layers\.(\d+)\.") for n in maps]
        heads = heads or [HEADS[width] for width in widths]
        channels = rows["feature_extractor.0.weight"][1]
        return cls(channels, (first, second), tuple(widths), tuple(layers), tuple(heads))


def _convolution(inputs: int, outputs: int, operations: Any) -> list[nn.Module]:
    """The norm has one mean and one variance over channels and cells together, and a weight for each of
    those.
    """
    norm = operations.LayerNorm((outputs, SIDE, SIDE))
    return [operations.Conv2d(inputs, outputs, 3, padding=1), norm, nn.GELU()]


class MapAttention(nn.Module):
    """All tokens see all; parameter names are those of torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int, operations: Any) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = operations.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, width)."""
        qkv = F.linear(x, self.in_proj_weight.to(x), self.in_proj_bias.to(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class MapLayer(nn.Module):
    """A transformer layer that normalises behind each residual sum; parameter names are those of torch's."""

    def __init__(self, width: int, heads: int, operations: Any) -> None:
        super().__init__()
        self.self_attn = MapAttention(width, heads, operations)
        self.linear1 = operations.Linear(width, 4 * width)
        self.linear2 = operations.Linear(4 * width, width)
        self.norm1 = operations.LayerNorm(width)
        self.norm2 = operations.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, width)."""
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class MapTransformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, operations: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MapLayer(width, heads, operations) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Maps(nn.Module):
    """Features (B, c, P, P) of a small picture -> for every prefix scale as many numbers as it has bits.

    Parameter names are those of the released file, below `map_transformer.`.
    """

    def __init__(self, config: MapConfig, operations: Any = nn) -> None:
        super().__init__()

        def convolved(*channels: int) -> nn.Sequential:
            pairs = [_convolution(*pair, operations) for pair in pairwise(channels)]
            return nn.Sequential(*(layer for layers in pairs for layer in layers))

        def projection(width: int) -> nn.Sequential:
            half, linear = width // 2, operations.Linear
            return nn.Sequential(
                linear(width, half), operations.LayerNorm(half), nn.GELU(), linear(half, config.channels)
            )

        c, sizes = config.channels, zip(config.widths, config.layers, config.heads, strict=True)
        self.feature_extractor = convolved(c, *config.extractor, c)
        self.feature_transforms = nn.ModuleList(convolved(c, w // 2, w) for w in config.widths)
        self.transformers = nn.ModuleList(MapTransformer(*size, operations) for size in sizes)
        self.output_projs = nn.ModuleList(map(projection, config.widths))

    def forward(self, features: Tensor) -> list[Tensor]:
        """The maps, coarsest first, each (B, side * side, c)."""
        shared = self.feature_extractor(features)
        found = []
        branches = zip(self.feature_transforms, self.transformers, self.output_projs, strict=True)
        for side, (transform, transformer, project) in zip(SIDES, branches, strict=True):
            tokens = rearrange(area_mean(transform(shared), (side, side)), "b c h w -> b (h w) c")
            found.append(project(transformer(tokens)))
        return found


def map_bits(out: Tensor) -> Tensor:
    """A map (B, side * side, c) as bits (B, c, side, side) uint8.

    Its memory is read anew, not transposed: channel by channel.  It was trained like that.
    """
    side = math.isqrt(out.shape[1])
    return (out.reshape(len(out), out.shape[2], side, side) > 0).to(torch.uint8)


class EnlargeTransformer(InfinityTransformer):
    """Infinity's, with the maps beside it, as both lie in one file."""

    def __init__(self, config: InfinityConfig, maps: MapConfig, operations: Any = nn) -> None:
        super().__init__(config, operations)
        self.map_transformer = Maps(maps, operations)


@dataclass(frozen=True)
class EnlargeCondition(InfinityCondition):
    """What the captions and the small pictures say.

    Attributes:
        given: tokens of the first scales, each (B, h*w, d) uint8.
    """

    given: tuple[Tensor, ...] = ()

    def unguided(self) -> EnlargeCondition:
        return EnlargeCondition(**vars(super().unguided()) | {"given": self.given})


@dataclass(frozen=True)
class EnlargeBackbone(InfinityBackbone):
    """Infinity that begins with what the maps say; its text is `PicturedText`, encoded by the codec."""

    def condition(
        self,
        text: Sequence[PicturedText],
        negative: Sequence[Tensor] | None,
        guided: bool,
        schedule: Schedule,
    ) -> EnlargeCondition:
        """The captions, and the bits of the first scales.

        Raises:
            ValueError: a text without a picture, or a picture of another size.
        """
        if not all(isinstance(one, PicturedText) for one in text):
            raise ValueError("this model enlarges a picture and got none; wire one to MoSs Enlarge")
        plain = super().condition([one.features for one in text], negative, guided, schedule)
        features = torch.stack([one.picture for one in text]).to(self.device, torch.float32)
        if features.shape[-2:] != (SIDE, SIDE):
            found = " x ".join(str(self.stride * side) for side in reversed(features.shape[-2:]))
            raise ValueError(f"this model enlarges pictures of {SMALL} x {SMALL} pixels, got {found}")
        return EnlargeCondition(**vars(plain) | {"given": self.prefix_tokens(features)})

    def prefix_tokens(self, features: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B, h*w, d) of the first scales from the small picture's features (B, c, P, P)."""
        maps = self.transformer.map_transformer(features)
        return tuple(map_to_tokens(map_bits(out), self.patchify) for out in maps)

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        """Shrinks by area at every scale, where Infinity takes bilinear samples."""
        small, same = self.map_grid(grid), tuple(total.shape[-2:]) == self.map_grid(grid)
        return map_to_tokens(total if same else area_mean(total, small), self.patchify)

    def is_empty(self, text: Tensor | PicturedText) -> bool:
        return super().is_empty(text.features if isinstance(text, PicturedText) else text)
