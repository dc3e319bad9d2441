"""Refine: redraw the dispatched tokens of all k scales in ONE forward pass (cross-scale self-attention)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.backbone import Backbone, Condition, Noise
from ..model.cache import KVCache
from ..model.sampling import bit_noise
from ..model.schedule import Positions
from .dispatch import Dispatch
from .draft import Draft, Run, rebuild_cache


@dataclass(frozen=True)
class RefineConfig:
    """How the refine step runs.

    Attributes:
        cross_scale: tokens of all scales see each other (CSSA); off = only those of their own scale (the SA ablation).
        guidance: keep the recipe's guidance; off = one row a picture, half the work.
    """

    cross_scale: bool = True
    guidance: bool = True


@dataclass(frozen=True)
class Residual:
    """What the refine step drew: the dispatched tokens, per refine scale (B, n_i, d), of the kind of `Draft.bits`."""

    dispatch: Dispatch
    bits: tuple[Tensor, ...]


def refine_sequence(backbone: Backbone, draft: Draft, dispatch: Dispatch) -> tuple[Tensor, Positions]:
    """Tokens (B, N, d) and positions of all refine scales as one sequence, coarsest scale first.

    Every scale's input is the draft resized to its grid, as the dense loop makes the input of its next scale.
    """
    schedule = draft.recipe.schedule
    total = draft.total.to(backbone.device)
    tokens, positions = [], []
    for scale, cells in zip(dispatch.scales, dispatch.cells, strict=True):
        cells = cells.to(backbone.device)
        whole = backbone.tokens(total, schedule.grids[scale])
        tokens.append(whole.gather(1, cells[..., None].expand(-1, -1, whole.shape[-1])))
        positions.append(Positions.of_cells(schedule, scale, cells))
    return torch.cat(tokens, dim=1), Positions.concat(positions)


@torch.inference_mode()
def refine(
    backbone: Backbone,
    draft: Draft,
    dispatch: Dispatch,
    config: RefineConfig = RefineConfig(),
    cache: KVCache | None = None,
    noise: Noise = bit_noise,
    condition: Condition | None = None,
) -> Residual:
    """Draw the dispatched tokens, attending to the draft's cache and to each other.  Changes neither draft nor cache.

    Args:
        cache: the draft's cache; rebuilt when None.
        condition: the recipe's prompts made ready for this model, as the draft used them; made anew when None.

    Raises:
        ValueError: the dispatch was made for another number of refine scales or pictures.
    """
    first = dispatch.scales[0]
    if first != draft.scales or len(dispatch.cells[0]) != len(draft.total):
        raise ValueError(
            f"this dispatch is for a draft of {first} scales and {len(dispatch.cells[0])} pictures, "
            f"but the draft has {draft.scales} scales and {len(draft.total)} pictures"
        )
    if sum(dispatch.counts) == 0:
        return Residual(dispatch, tuple(draft.bits[0][:, :0] for _ in dispatch.cells))
    condition = condition or draft.recipe.condition(backbone)
    cache = cache or rebuild_cache(backbone, draft, condition)
    if not config.guidance:
        condition = condition.unguided()
        cache = cache.first_rows(condition.batch)
    run = Run(backbone, draft.recipe, condition, cache, noise)
    tokens, positions = refine_sequence(backbone, draft, dispatch)
    visible = None if config.cross_scale else positions.scale[0].int()  # the same scales for every picture
    hidden = run.forward(tokens, positions, store=False, visible=visible)
    bits = run.sample(hidden, positions)
    return Residual(dispatch, tuple(b.cpu() for b in bits.split(list(dispatch.counts), dim=1)))
