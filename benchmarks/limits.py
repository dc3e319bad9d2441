"""Checks that must hold before a speed is worth printing: exact limits, and agreement with plain float32 on
the CPU.

They run on a small random model whose attention heads are as wide as the measured model's, on the same
device, precision and backend; at a ratio other than 1:1, where the family has one, so that rows and columns
cannot be confused unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from comfy_moss.model.backbone import PAPER_BOUNDS, Backbone, Step
from comfy_moss.model.graphs import Graphs
from comfy_moss.ops import Kernels
from comfy_moss.pipeline.dispatch import Dispatch, RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import Draft, Recipe, draw_draft
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.refine import finish_dense, refine

from .shapes import NANO, kind_of

# share of bits allowed to differ where both ways are the same in theory
DIFFERENT = {torch.float32: 0.0, torch.bfloat16: 0.01}
# share of bits allowed to differ from float32's on the CPU
SLIPPED = {torch.float32: 1e-3, torch.bfloat16: 0.01}
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.03}  # allowed distance of logits, as a share of their norm
K = 3  # of the refine steps that are compared


@dataclass(frozen=True)
class Limit:
    """One check: what was compared, on which kernels, how far apart it was, and how far it may be."""

    name: str
    kernels: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN


class Wrapped:
    """Another backbone, of whatever family, in all but what a subclass changes."""

    def __init__(self, inner: Backbone) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Listening(Wrapped):
    """Keeps the logits of every drawn scale or refine step."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.heard: list[Tensor] = []

    def sample(self, hidden: Tensor, step: Step) -> Tensor:
        self.heard.append(self.inner.logits(hidden, step))
        return self.inner.sample(hidden, step)


def check_limits(
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    kernels: Kernels,
    graphs: Graphs | None = None,
    shape: str = NANO,
) -> list[Limit]:
    """Run every check there, on a model of the shape's family."""
    small, recipe = kind_of(shape).small(head_dim)
    plain, model = Listening(small), _moved(small, device, dtype, kernels, graphs)
    scales = len(recipe.schedule)
    whole, _ = draw_draft(plain, recipe, scales)
    part, _ = draw_draft(plain, recipe, scales - K)
    far, near = DIFFERENT[dtype], ROUNDING[dtype]
    together, apart = (RefinePass.of_last(PAPER_BOUNDS[K], cross_scale=on) for on in (True, False))
    found = [
        (
            "bits of one refine scale with bound 100 against the dense last step", _one_scale(model, recipe),
            far,
        ),
        ("bits of a draft of all scales against the plain model", _resumed(model, recipe), far),
        ("logits of the draft against float32 on the CPU", _drafted(model, plain, whole), near),
        (
            "bits of every scale, drawn from the true bits before it", _teacher_forced(model, whole),
            SLIPPED[dtype],
        ),
        (
            "logits of the refine step against float32 on the CPU", _refined(model, plain, part, together),
            near,
        ),
        (
            "logits of the refine step without CSSA against float32 on the CPU",
            _refined(model, plain, part, apart), near,
        ),
    ]
    name = f"{kernels.name}, graphs" if graphs else kernels.name
    return [Limit(what, name, error, allowed) for what, error, allowed in found]


def _moved(
    model: Backbone, device: torch.device, dtype: torch.dtype, kernels: Kernels, graphs: Graphs | None = None
) -> Listening:
    """On that device, its blocks in that precision."""
    transformer, vae = (deepcopy(part).to(device) for part in (model.transformer, model.vae))
    transformer.blocks.to(dtype)
    option = {"graphs": graphs} if graphs else {}
    return Listening(replace(model, transformer=transformer, vae=vae, kernels=kernels, **option))


def _different(bits: Tensor, others: Tensor) -> float:
    return (bits != others).double().mean().item()


def _one_scale(model: Listening, recipe: Recipe) -> float:
    draft, cache = draw_draft(model, recipe, len(recipe.schedule) - 1)
    whole, _ = finish_dense(model, draft, cache)
    last = RefinePass.of_last((100.0,))
    return _different(refine(model, draft, _dispatch(draft, last), last, cache).bits[0], whole.bits[-1])


def _resumed(model: Listening, recipe: Recipe) -> float:
    scales = len(recipe.schedule)
    whole, _ = draw_draft(model, recipe, scales)
    finished, _ = finish_dense(model, *draw_draft(model, recipe, scales - K))
    return max(_different(ours, bits) for ours, bits in zip(finished.bits, whole.bits, strict=True))


def _drafted(model: Listening, plain: Listening, reference: Draft) -> float:
    """Every scale drawn from the reference's bits before it, so that one early slip does not cause the later
    ones."""

    def draw(listener: Listening) -> None:
        for n in range(reference.scales):
            draw_draft(listener, reference.recipe, n + 1, given=reference.bits[:n])

    return _distance(draw, model, plain)


def _teacher_forced(model: Listening, reference: Draft) -> float:
    """Share of bits that differ from the reference's, over all scales."""
    drawn = [
        draw_draft(
            model, reference.recipe, n + 1, given=reference.bits[:n]
        )[0].bits[n] for n in range(reference.scales)
    ]
    return _different(torch.cat(drawn, dim=1), torch.cat(reference.bits, dim=1))


def _refined(model: Listening, plain: Listening, draft: Draft, step: RefinePass) -> float:
    dispatch = _dispatch(draft, step)
    return _distance(lambda listener: refine(listener, draft, dispatch, step), model, plain)


def _distance(draw: Callable[[Listening], object], model: Listening, plain: Listening) -> float:
    """How far the logits are apart when both models draw the same, as a share of their norm; the worst step
    counts."""
    for listener in (model, plain):
        listener.heard.clear()
        draw(listener)
    pairs = [
        (ours.double().cpu(), true.double()) for ours, true in zip(model.heard, plain.heard, strict=True)
    ]
    return max(((ours - true).norm() / true.norm()).item() for ours, true in pairs)


def _dispatch(draft: Draft, step: RefinePass) -> Dispatch:
    return dispatch_tokens(frequency_map(draft.total), draft.recipe.schedule, step)
