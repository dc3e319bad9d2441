"""Generate: one picture from a recipe by any method, with its cost counted the same way for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.backbone import PAPER, PAPER_BOUNDS, Backbone, Published
from ..model.schedule import Schedule
from .composite import composite
from .dispatch import Dispatch, DispatchConfig, dispatch_tokens, refine_counts
from .draft import Draft, OnScale, Recipe, draw_draft
from .fastvar import finish_fastvar
from .frequency import frequency_map
from .refine import RefineConfig, refine
from .stopwatch import Stopwatch

METHODS = ("dense", "draft", "fastvar", "moss", *(f"moss{k}" for k in PAPER_BOUNDS))
STAGES = ("draft", "frequency", "dispatch", "refine", "composite", "decode")


@dataclass(frozen=True)
class Method:
    """How a picture is drawn.

    Attributes:
        name: "dense", "draft" (skip the last scales), "fastvar" or "moss".
        bounds: moss: t_1 >= ... >= t_k in percent, coarsest refine scale first; empty otherwise.
        skip: draft: how many of the last scales are left out.
        cross_scale, guidance: moss: see `RefineConfig`.
        strength: moss: factor on the residual in [0, 1].
        window: moss: side of the frequency window, odd, >= 3.

    Raises:
        ValueError: a value out of range.
    """

    name: str
    bounds: tuple[float, ...] = ()
    skip: int = 0
    cross_scale: bool = True
    guidance: bool = True
    strength: float = 1.0
    window: int = 3

    def __post_init__(self) -> None:
        if self.name == "moss":
            DispatchConfig(self.bounds)  # refuses impossible bounds
        if self.skip < 0:
            raise ValueError(f"the number of scales to skip must be 0 or more, got {self.skip}")
        if not (math.isfinite(self.strength) and 0 <= self.strength <= 1):
            raise ValueError(f"strength must lie between 0 and 1, got {self.strength}")
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"the frequency window must be odd and at least 3, got {self.window}")

    @property
    def k(self) -> int:
        """Scales that are not drawn in order: refined together, or skipped."""
        return len(self.bounds) or self.skip

    @property
    def label(self) -> str:
        """Short name with k, as tables print it: "moss4", "draft-4", "dense"."""
        return {"moss": f"moss{self.k}", "draft": f"draft-{self.k}"}.get(self.name, self.name)

    def check(self, schedule: Schedule) -> None:
        """Refuse a method that this schedule cannot carry.

        Raises:
            ValueError: no scale would be left to draft.
        """
        if self.name == "moss":
            refine_counts(schedule, self.bounds)
        elif self.k >= len(schedule):
            raise ValueError(f"skipping {self.k} scales leaves nothing to draw; this picture has {len(schedule)} scales")


def parse_method(
    text: str, bounds: Sequence[float] | None = None, skip: int | None = None, published: Published = PAPER
) -> Method:
    """A method from its name, as typed on the command line.

    Args:
        text: one of METHODS; moss2..moss5 carry the model's bounds: found for it, else the paper's.
        bounds: own bounds in percent, for moss (any number of them) or moss2..moss5 (that many).
        skip: how many of the last scales "draft" leaves out; None = as many as the model's first method refines.
        published: settings of the methods for the model.

    Raises:
        ValueError: unknown name, bounds or skip given to another method, or bounds missing, too many or impossible.
    """
    if text not in METHODS:
        raise ValueError(f"method {text!r} is unknown; choose one of {', '.join(METHODS)}")
    moss = text.startswith("moss")
    if bounds is not None and not moss:
        raise ValueError(f"bounds belong to the moss methods; {text} has no use for them")
    if skip is not None and text != "draft":
        raise ValueError(f"skip belongs to the method draft; {text} draws every scale")
    if text == "draft":
        return Method("draft", skip=published.k if skip is None else skip)
    return Method("moss", _bounds(text, bounds, published)) if moss else Method(text)


def _bounds(text: str, bounds: Sequence[float] | None, published: Published) -> tuple[float, ...]:
    if text == "moss":
        if not bounds:
            raise ValueError("the method moss needs bounds, for example 80,70,30,10; or choose moss2 to moss5")
        return tuple(bounds)
    k = int(text.removeprefix("moss"))
    if bounds is not None and len(bounds) != k:
        raise ValueError(f"{text} takes {k} bounds, got {len(bounds)}; use the method moss for another number of them")
    if bounds is None and k not in published.bounds:
        printed = ", ".join(f"moss{k}" for k in published.bounds)
        raise ValueError(f"the paper has no bounds of {text} for this model; choose {printed}, or give {k} bounds")
    return published.best[k] if bounds is None else tuple(bounds)


@dataclass(frozen=True)
class Picture:
    """B pictures and what they took.

    Attributes:
        image: (B, 3, H, W) float32 in [-1, 1], RGB.
        total: (B, c, h, w) sum of codes that was decoded.
        tokens_per_scale: tokens a picture, per scale, that the transformer ran: h*w where drawn whole, the dispatched or
            (fastvar, in its pruning blocks) kept ones otherwise, 0 where skipped.
        kv_bytes: bytes of the KV cache that was really allocated.
        seconds: wall time of each of STAGES, 0 where a method has no such stage; for dense, draft and fastvar all
            drawing counts as "draft".
        draft: moss: what was drawn before the refine step.
        frequency: moss: (B, h, w).
        dispatch: moss: which tokens were refined.
    """

    image: Tensor
    total: Tensor
    tokens_per_scale: tuple[int, ...]
    kv_bytes: int
    seconds: dict[str, float]
    draft: Draft | None = None
    frequency: Tensor | None = None
    dispatch: Dispatch | None = None

    @property
    def refine_tokens(self) -> int:
        """Tokens a picture that the refine step drew; 0 for other methods."""
        return sum(self.dispatch.counts) if self.dispatch else 0


@dataclass(frozen=True)
class _Drawing:
    """A picture before it is decoded."""

    total: Tensor
    tokens_per_scale: tuple[int, ...]
    kv_bytes: int
    draft: Draft | None = None
    frequency: Tensor | None = None
    dispatch: Dispatch | None = None


def generate(backbone: Backbone, recipe: Recipe, method: Method, on_scale: OnScale | None = None) -> Picture:
    """Draw and decode.

    Args:
        on_scale: called after every drawn scale, and for moss once more (scales done = S) after the composite; may raise
            to cancel.

    Raises:
        ValueError: the method leaves no scale to draw on this recipe's schedule.
    """
    method.check(recipe.schedule)
    watch = Stopwatch(backbone.device, STAGES)
    draw = {"moss": _moss, "fastvar": _fastvar}.get(method.name, _in_order)
    drawing = draw(backbone, recipe, method, watch, on_scale)
    with watch.stage("decode"), torch.inference_mode():
        image = backbone.decode(drawing.total.to(backbone.device))
    return Picture(image=image, seconds=watch.seconds, **vars(drawing))


def _whole(schedule: Schedule, scales: int) -> tuple[int, ...]:
    """Tokens per scale when the first `scales` are drawn whole and the others not at all."""
    return tuple(h * w if n < scales else 0 for n, (h, w) in enumerate(schedule.grids))


def _in_order(
    backbone: Backbone, recipe: Recipe, method: Method, watch: Stopwatch, on_scale: OnScale | None
) -> _Drawing:
    scales = len(recipe.schedule) - method.k
    with watch.stage("draft"):
        draft, cache = draw_draft(backbone, recipe, scales, on_scale=on_scale)
    return _Drawing(draft.total, _whole(recipe.schedule, scales), cache.nbytes)


def _fastvar(
    backbone: Backbone, recipe: Recipe, method: Method, watch: Stopwatch, on_scale: OnScale | None
) -> _Drawing:
    with watch.stage("draft"):
        drawn, cache, tokens = finish_fastvar(backbone, recipe, on_scale=on_scale)
    return _Drawing(drawn.total, tuple(tokens), cache.nbytes)


def _moss(
    backbone: Backbone, recipe: Recipe, method: Method, watch: Stopwatch, on_scale: OnScale | None
) -> _Drawing:
    schedule = recipe.schedule
    scales = len(schedule) - method.k
    with watch.stage("draft"):
        condition = recipe.condition(backbone)
        draft, cache = draw_draft(backbone, recipe, scales, on_scale=on_scale, condition=condition)
    with watch.stage("frequency"):
        frequency = frequency_map(draft.total, method.window)
    with watch.stage("dispatch"):
        dispatch = dispatch_tokens(frequency, schedule, DispatchConfig(method.bounds))
    with watch.stage("refine"):
        config = RefineConfig(method.cross_scale, method.guidance)
        residual = refine(backbone, draft, dispatch, config, cache, condition=condition)
    with watch.stage("composite"):
        total = composite(backbone, draft, residual, method.strength)
    if on_scale:
        on_scale(len(schedule), len(schedule), total)
    tokens = _whole(schedule, scales)[:scales] + dispatch.counts
    return _Drawing(total, tokens, cache.nbytes, draft, frequency, dispatch)
