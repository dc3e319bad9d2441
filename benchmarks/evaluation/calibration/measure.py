"""Measuring bounds on a model: every draft and its dense picture are drawn once, and each try costs a refine step only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from comfy_moss.images import to_image
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.cache import KVCache
from comfy_moss.pipeline.dispatch import dispatch_tokens
from comfy_moss.pipeline.draft import Draft, draw_draft
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.plan import Plan
from comfy_moss.pipeline.refine import composite, finish_dense, refine

from ...suite import Case
from ..loading import Studio
from .quality import Drawn, Pair, Quality
from .trials import Bounds

KEPT = 4 * 2**30  # bytes of KV caches kept between tries; what is beyond is rebuilt in every try
OnBatch = Callable[[int, int], None]  # (drafts done, drafts in all); may raise to cancel


@dataclass(frozen=True)
class Batch:
    """Drafts with everything that does not depend on the bounds; `cache` is None where there was no room."""

    draft: Draft
    cache: KVCache | None
    frequency: Tensor
    dense: Drawn
    cases: Sequence[Case]


@dataclass(frozen=True)
class Measure:
    """A metric for `search.calibrate`: bounds -> the mean of a quality over all pictures."""

    backbone: Backbone
    method: Plan
    quality: Quality
    batches: tuple[Batch, ...]

    def values(self, bounds: Bounds) -> np.ndarray:
        """The quality of every picture, (P,) float64."""
        pairs = (Pair(self._draw(batch, bounds), batch.dense, batch.cases) for batch in self.batches)
        return np.concatenate([self.quality.values(pair).numpy().astype(float) for pair in pairs])

    def __call__(self, bounds: Bounds) -> float:
        return float(self.values(bounds).mean())

    def _draw(self, batch: Batch, bounds: Bounds) -> Drawn:
        (step,), draft = self.method.passes, batch.draft
        step = replace(step, bounds=tuple(bounds))
        dispatch = dispatch_tokens(batch.frequency, draft.recipe.schedule, step)
        residual = refine(self.backbone, draft, dispatch, step, batch.cache)
        return _finished(self.backbone, composite(self.backbone, draft, residual).total, self.quality)


def prepare(
    studio: Studio, method: Plan, quality: Quality, prompts: Sequence[str], cases: Sequence[Case], size: int, on_batch: OnBatch
) -> Measure:
    """Draw all drafts, and finish each of them densely.

    Args:
        method: moss; its bounds say only how many scales are refined.
        cases: what the prompts ask for, or none.
        size: pictures drawn together.  Picture n has the seed of the order + n.
    """
    batches, kept, seed = [], 0, studio.job.request.seed
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        recipe = studio.recipe(part, range(seed + start, seed + start + len(part)))
        draft, cache = draw_draft(studio.backbone, recipe, len(recipe.schedule) - method.k)
        dense = _finished(studio.backbone, finish_dense(studio.backbone, draft, cache)[0].total, quality)
        kept += cache.nbytes
        frequency = frequency_map(draft.total, method.window)
        batches.append(Batch(draft, cache if kept <= KEPT else None, frequency, dense, cases[start : start + size]))
        on_batch(start + len(part), len(prompts))
    return Measure(studio.backbone, method, quality, tuple(batches))


@torch.inference_mode()
def _finished(backbone: Backbone, total: Tensor, quality: Quality) -> Drawn:
    images = to_image(backbone.decode(total.to(backbone.device))) if quality.looks else None
    return Drawn(total.cpu(), images)
