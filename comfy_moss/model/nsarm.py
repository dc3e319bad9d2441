"""NSARM: Infinity, fine-tuned to enlarge a damaged picture four times.

A network of its own (the maps) turns the codec's features of the small picture into the bits of the first
scales; the transformer draws the rest.  Facts: docs/fine-tunes.md, section 2.

Shapes: B pictures, c channels of the codec, P = 32 cells a side of the small picture's features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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


class SpatialNorm(nn.LayerNorm):
    """One mean and one variance over channels and cells together, a weight for each of those."""

    def __init__(self, channels: int) -> None:
        super().__init__((channels, SIDE, SIDE))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), SpatialNorm(outputs), nn.GELU()]


class MapLayer(nn.Module):
    """A transformer layer that normalises behind each residual sum; parameter names are those of torch's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, width), all of which sees all."""
        x = self.norm1(x + self._attention(x))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))

    def _attention(self, x: Tensor) -> Tensor:
        layer = self.self_attn
        qkv = F.linear(x, layer.in_proj_weight, layer.in_proj_bias)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=layer.num_heads)
        return layer.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class MapTransformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MapLayer(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Maps(nn.Module):
    """Features (B, c, P, P) of a small picture -> for every prefix scale as many numbers as it has bits.

    Parameter names are those of the released file, below `map_transformer.`.
    """

    def __init__(self, config: MapConfig) -> None:
        super().__init__()
        c, (first, second) = config.channels, config.extractor
        self.feature_extractor = nn.Sequential(
            *_convolution(c, first), *_convolution(first, second), *_convolution(second, c)
        )
        self.feature_transforms = nn.ModuleList(
            nn.Sequential(*_convolution(c, width // 2), *_convolution(width // 2, width))
            for width in config.widths
        )
        self.transformers = nn.ModuleList(
            MapTransformer(*sizes) for sizes in zip(config.widths, config.layers, config.heads, strict=True)
        )
        self.output_projs = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width // 2), nn.LayerNorm(width // 2), nn.GELU(), nn.Linear(width // 2, c)
            )
            for width in config.widths
        )

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

    def __init__(self, config: InfinityConfig, maps: MapConfig) -> None:
        super().__init__(config)
        self.map_transformer = Maps(maps)


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
