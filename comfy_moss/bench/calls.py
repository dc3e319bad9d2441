"""The calls that are timed: drawing without decoding, and decoding alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..model.graphs import Graphs
from ..model.infinity_backbone import InfinityBackbone
from ..pipeline.cost import Cost
from ..pipeline.draft import Recipe, empty_total
from ..pipeline.generate import generate
from .machine import count_launches
from .variants import Variant

DECODE = "decode"  # the decoder among the calls; among the stages of a picture it has the same name


@dataclass(frozen=True)
class Undecoded(InfinityBackbone):
    """Hands the sum of codes through, so that `generate` takes the time of drawing alone."""

    def decode(self, total: Tensor) -> Tensor:
        return total


@dataclass(frozen=True)
class Counting(Undecoded):
    """Counts what each pass through the transformer gives the GPU to do."""

    launches: list[int] = field(default_factory=list, kw_only=True)

    def forward(self, *args: Any, **options: Any) -> Tensor:
        count, hidden = count_launches(self.device, partial(super().forward, *args, **options))
        self.launches.append(count)
        return hidden


def calls(backbone: InfinityBackbone, recipe: Recipe, variants: Sequence[Variant]) -> dict[str, Callable[[], Cost | None]]:
    """What is run in every round: each variant's drawing, by `Variant.run`, and the decoder, under DECODE."""
    total = empty_total(backbone, recipe).normal_()
    draws = {v.run: partial(_draw, _part(Undecoded, backbone, v), recipe, v) for v in variants}
    return draws | {DECODE: partial(_decode, backbone, total)}


def _part(kind: type[Undecoded], backbone: InfinityBackbone, variant: Variant) -> Undecoded:
    graphs = Graphs() if variant.graphs else None
    return kind(backbone.transformer, backbone.vae, backbone.model_id, kernels=variant.kernels, graphs=graphs)


def _draw(backbone: Undecoded, recipe: Recipe, variant: Variant) -> Cost:
    picture = generate(backbone, recipe, variant.method)
    return Cost(variant.label, picture.tokens_per_scale, picture.kv_bytes, picture.seconds)


def refine_launches(backbone: InfinityBackbone, recipe: Recipe, variant: Variant) -> int | None:
    """What the last pass, which is the refine step's, gives a GPU to do; None on a CPU, and for a graph, which is one thing."""
    if backbone.device.type != "cuda" or variant.graphs:
        return None
    counting = _part(Counting, backbone, variant)
    generate(counting, recipe, variant.method)
    return counting.launches[-1]


@torch.inference_mode()
def _decode(backbone: InfinityBackbone, total: Tensor) -> None:
    backbone.decode(total)
