"""Generate: one picture from a recipe by any method, with its cost counted the same way for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model.backbone import Backbone
from .cost import Cost, Stopwatch
from .dispatch import Dispatch, RefinePass, dispatch_tokens
from .draft import Draft, OnScale, Recipe, Run, draft_of
from .fastvar import finish_fastvar
from .frequency import frequency_map
from .plan import Method, Plan
from .refine import composite, draw_pass

STAGES = ("draft", "frequency", "dispatch", "refine", "composite", "decode")


@dataclass(frozen=True)
class PassMaps:
    """What explains a refine pass: the draft that it started from, that draft's map (B, h, w), and who redraws what."""

    draft: Draft
    frequency: Tensor
    dispatch: Dispatch


@dataclass(frozen=True)
class Picture:
    """B pictures and what they took.

    Attributes:
        total: (B, c, h, w) sum of codes.
        cost: tokens, bytes and seconds.
        passes: what explains each refine pass; empty for other methods.
        image: (B, 3, H, W) float32 in [-1, 1], RGB; None = not decoded.
    """

    total: Tensor
    cost: Cost
    passes: tuple[PassMaps, ...] = ()
    image: Tensor | None = None


def generate(
    backbone: Backbone, recipe: Recipe, method: Method, on_scale: OnScale | None = None,
    painted: Tensor | None = None,
) -> Picture:
    """Draw and decode.

    Args:
        on_scale: called after every drawn scale and after every pass (scales done = its last one plus one); may raise
            to cancel.
        painted: see `dispatch_tokens`; for every pass.

    Raises:
        ValueError: the method does not fit this recipe's schedule.
    """
    watch = Stopwatch(backbone.device, STAGES)
    if isinstance(method, Plan):
        picture = run(backbone, recipe, method, watch, on_scale, painted)
    else:
        with watch.stage("draft"):
            drawn, cache, tokens = finish_fastvar(backbone, recipe, method, on_scale=on_scale)
        picture = Picture(drawn.total, Cost(method.label, tuple(tokens), cache.nbytes, watch.seconds))
    with watch.stage("decode"), torch.inference_mode():
        return replace(picture, image=backbone.decode(picture.total.to(backbone.device)))


@torch.inference_mode()
def run(
    backbone: Backbone, recipe: Recipe, plan: Plan, watch: Stopwatch | None = None, on_scale: OnScale | None = None,
    painted: Tensor | None = None,
) -> Picture:
    """Draw a picture by a plan; arguments as of `generate`."""
    schedule, watch = recipe.schedule, watch or Stopwatch(backbone.device, STAGES)
    fitted = plan.on(schedule)
    if plan.guidance is not None:
        recipe = replace(recipe, guidance=recipe.guidance.of_strength(plan.guidance))
    stored = schedule.tokens(0, min(fitted.draft, len(schedule) - 1)) + fitted.room(schedule)
    with watch.stage("draft"):
        live = Run.begin(backbone, recipe, stored)
        draft = draft_of(live, fitted.draft, on_scale=on_scale)
    kv_bytes, maps = live.cache.nbytes, []
    for n, step in enumerate(fitted.passes, start=1):
        draft, live, found = run_pass(live, draft, step, watch, plan.window, painted, store=n < len(fitted.passes))
        maps.append(found)
        if on_scale:
            done = len(schedule) if n == len(fitted.passes) else step.scales[-1] + 1
            on_scale(done, len(schedule), draft.total)
    tokens = plan.tokens_per_scale(schedule)
    refined = sum(sum(step.counts(schedule)) for step in fitted.passes)
    return Picture(draft.total, Cost(plan.label, tokens, kv_bytes, watch.seconds, refined), tuple(maps))


def run_pass(
    live: Run, draft: Draft, step: RefinePass, watch: Stopwatch, window: int = 3, painted: Tensor | None = None,
    store: bool = False,
) -> tuple[Draft, Run, PassMaps]:
    """One pass from frequency map to composite: the new draft, the run for what follows, and the maps."""
    with watch.stage("frequency"):
        frequency = frequency_map(draft.total, window)
    with watch.stage("dispatch"):
        dispatch = dispatch_tokens(frequency, draft.recipe.schedule, step, painted)
    with watch.stage("refine"):
        residual, live = draw_pass(live, draft, dispatch, step, store)
    with watch.stage("composite"):
        return composite(live.backbone, draft, residual), live, PassMaps(draft, frequency, dispatch)
