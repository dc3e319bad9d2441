"""The calls that are timed: drawing without decoding, and decoding alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from comfy_moss.model.backbone import Backbone
from comfy_moss.model.graphs import Graphs
from comfy_moss.pipeline.cost import Cost
from comfy_moss.pipeline.draft import Recipe, empty_total
from comfy_moss.pipeline.generate import generate

from .machine import count_launches
from .variants import Variant
from .wrapped import Wrapped

DECODE = "decode"  # the decoder among the calls; among the stages of a picture it has the same name


class Undecoded(Wrapped):
    """Hands the sum of codes through, so that `generate` takes the time of drawing alone."""

    def decode(self, total: Tensor) -> Tensor:
        return total


class Counting(Undecoded):
    """Counts what each pass through the transformer gives the GPU to do."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.launches: list[int] = []

    def forward(self, *args: Any, **options: Any) -> Tensor:
        count, hidden = count_launches(self.device, partial(self.inner.forward, *args, **options))
        self.launches.append(count)
        return hidden


def calls(backbone: Backbone, recipe: Recipe, variants: Sequence[Variant]) -> dict[str, Callable[[], Cost | None]]:
    """What is run in every round: each variant's drawing, by `Variant.run`, and the decoder, under DECODE."""
    total = empty_total(backbone, recipe).normal_()
    draws = {v.run: partial(_draw, _part(Undecoded, backbone, v), recipe, v) for v in variants}
    return draws | {DECODE: partial(_decode, backbone, total)}


def _part(kind: type[Undecoded], backbone: Backbone, variant: Variant) -> Undecoded:
    graphs = {"graphs": Graphs()} if variant.graphs else {}
    return kind(replace(backbone, kernels=variant.kernels, **graphs))


def _draw(backbone: Undecoded, recipe: Recipe, variant: Variant) -> Cost:
    picture = generate(backbone, recipe, variant.method)
    return replace(picture.cost, label=variant.label)


def refine_launches(backbone: Backbone, recipe: Recipe, variant: Variant) -> int | None:
    """What the last pass, which is the refine step's, gives a GPU to do; None on a CPU, and for a graph, which is one thing."""
    if backbone.device.type != "cuda" or variant.graphs:
        return None
    counting = _part(Counting, backbone, variant)
    generate(counting, recipe, variant.method)
    return counting.launches[-1]


@torch.inference_mode()
def _decode(backbone: Backbone, total: Tensor) -> None:
    backbone.decode(total)
