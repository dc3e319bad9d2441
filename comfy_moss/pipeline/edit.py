"""Edit: change a picture by changing its prompt, without training, on the draft's scales alone.

Both ways ask the same model twice, with the prompt that the picture is of and with the one that it should
follow, and change a bit where they disagree:

- "shift" (EditMod): both prompts see the changed picture; every bit of the source is drawn again from
  clip(1 + P(target) - P(source)), so that it falls by as much as its probability fell.
- "gate" (AREdit): the source's prompt sees the source; a bit is drawn again, from the target's prompt, where
  its probability fell by more than the gate.

The first scales stay the source's; from `follow` on the places that have not changed keep the source's
tokens, as in inpainting with a mask that was found instead of painted.  Equal prompts change nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.backbone import Backbone
from ..model.sampling import bit_noise
from ..model.schedule import Schedule
from ..ops import area_mean
from .draft import Draft, OnScale, Recipe, Run, draw_scales, empty_total, lay_scale
from .source import Edit, Source


@torch.inference_mode()
def edit_draft(
    backbone: Backbone, recipe: Recipe, scales: int, capacity: int | None = None,
    on_scale: OnScale | None = None,
) -> tuple[Run, Draft, Tensor]:
    """The draft of a picture that follows another prompt.

    Args:
        recipe: of the target's prompt; its source is the picture and says how it is edited, with a mask where
            only a part may change.
        scales: of the draft.
        capacity: tokens a row of the cache; None = those of the draft.

    Returns:
        The run whose cache holds it, the draft, and how much each place changed, (B, H, W) >= 0.

    Raises:
        ValueError: the source has fewer scales, or the model draws no bits.
    """
    source, schedule, edit = recipe.source, recipe.schedule, recipe.source.edit
    if len(source.bits) < scales:
        raise ValueError(f"this picture has {len(source.bits)} scales to edit and {scales} are asked for")
    stored = schedule.tokens(0, min(scales, len(schedule) - 1))
    run = Run.begin(backbone, replace(recipe, source=replace(source, scales=0)), capacity or stored)
    other = Run.begin(backbone, replace(recipe, text=edit.text, source=None), stored)
    follow = min(edit.follow, scales)
    bits, total = _follow(run, other, range(follow), on_scale)
    change = change_of(backbone, total, source, schedule, follow)
    if source.mask is None and edit.found:
        found = replace(run.recipe.source, mask=found_mask(change, schedule, edit.found), first=follow)
        run = replace(run, recipe=replace(run.recipe, source=found))
    rest, total = draw_scales(run, total, range(follow, scales), on_scale=on_scale)
    other.finite.check()
    kept = tuple(b.cpu() for b in (*bits, *rest))
    return run, Draft(run.recipe, kept, total.cpu(), backbone.model_id), change.cpu()


def _follow(
    run: Run, other: Run, scales: range, on_scale: OnScale | None
) -> tuple[list[Tensor], Tensor]:
    """The edited tokens of the first scales, and their sum of codes."""
    backbone, source, schedule = run.backbone, run.recipe.source, run.recipe.schedule
    edit, total, drawn = source.edit, empty_total(backbone, run.recipe), []
    own = total
    for scale in scales:
        bits = source.bits[scale].to(backbone.device)
        keep = scale < len(schedule) - 1
        tokens, step = run.whole_scale(total, scale, keep)
        hidden = backbone.forward(tokens, step)
        tokens, past = other.whole_scale(total if edit.rule == "shift" else own, scale, keep)
        seen = backbone.forward(tokens, past)
        added = backbone.code_map(backbone.codes(bits), scale, schedule)
        if scale >= edit.preserve:
            before, after = backbone.bit_probability(seen, past), backbone.bit_probability(hidden, step)
            bits = _changed(edit, bits, before, after, bit_noise(step.seeds, step.positions, bits.shape[-1]))
        own = own + added
        bits, total = lay_scale(run, total, scale, bits)
        drawn.append(bits)
        if on_scale:
            on_scale(scale + 1, len(schedule), total)
    return drawn, total


def _changed(edit: Edit, source: Tensor, before: Tensor, target: Tensor, noise: Tensor) -> Tensor:
    """The bits (B, N, d) of a scale, from the source's, and their probabilities under both prompts."""
    if edit.rule == "shift":
        return (noise < (source + target - before).clamp(0, 1)).to(source.dtype)
    fall = torch.where(source == 1, before - target, target - before)
    return torch.where(fall > edit.gate, (noise < target).to(source.dtype), source)


def change_of(backbone: Backbone, total: Tensor, source: Source, schedule: Schedule, scales: int) -> Tensor:
    """How much the codes of the first scales changed around every place, (B, H, W): of the code map, >= 0."""
    own = torch.zeros_like(total)
    for scale in range(scales):
        codes = backbone.codes(source.bits[scale].to(total.device))
        own = own + backbone.code_map(codes, scale, schedule)
    moved = torch.linalg.vector_norm(total - own, dim=1)
    return F.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)


def found_mask(change: Tensor, schedule: Schedule, share: float) -> Tensor:
    """(B, H, W) bool on the last token grid: where the change is above a share of the largest."""
    change = area_mean(change, schedule.grids[-1])
    return change > share * change.amax((1, 2), keepdim=True)
