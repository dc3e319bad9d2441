"""Dense: draw the remaining scales in order and everywhere, as the plain model does.  The slow baseline."""

from __future__ import annotations

import torch

from ..model.backbone import Backbone, Condition, Noise
from ..model.cache import KVCache
from ..model.sampling import bit_noise
from .draft import Draft, OnScale, Run, draw_scales, rebuild_cache


@torch.inference_mode()
def finish_dense(
    backbone: Backbone,
    draft: Draft,
    cache: KVCache | None = None,
    on_scale: OnScale | None = None,
    noise: Noise = bit_noise,
    condition: Condition | None = None,
) -> tuple[Draft, KVCache]:
    """Draw what the draft lacks.

    Args:
        cache: the draft's cache; rebuilt when None.  It is not changed.
        condition: the recipe's prompts made ready for this model, as the draft used them; made anew when None.

    Returns:
        The finished picture as a draft of all S scales, and the larger cache that drawing it took.
    """
    recipe, schedule = draft.recipe, draft.recipe.schedule
    total = draft.total.to(backbone.device)
    condition = condition or recipe.condition(backbone)
    cache = cache or rebuild_cache(backbone, draft, condition)
    if draft.refine_scales == 0:
        return draft, cache
    grown = cache.grown(cache.lengths[0] + schedule.tokens(draft.scales, len(schedule) - 1))
    run = Run(backbone, recipe, condition, grown, noise)
    bits, total = draw_scales(run, total, range(draft.scales, len(schedule)), on_scale=on_scale)
    return Draft(recipe, draft.bits + tuple(b.cpu() for b in bits), total.cpu(), draft.model_id), grown
