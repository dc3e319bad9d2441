"""Composite: lay the refined tokens over the draft."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.backbone import Backbone
from .draft import Draft
from .refine import Residual


@torch.inference_mode()
def composite(
    backbone: Backbone, draft: Draft, residual: Residual, strength: float = 1.0, device: torch.device | None = None
) -> Tensor:
    """Sum of codes with the residual added: each scale's codes in an otherwise empty map, upsampled like the dense loop's, and
    without effect on places that nobody drew.

    Args:
        strength: factor on the residual in [0, 1]; 1 is the paper's.
        device: where the codec is, if not with the transformer.

    Returns:
        (B, c, H, W) float32, ready to decode.

    Raises:
        ValueError: strength outside [0, 1].
    """
    if not (math.isfinite(strength) and 0 <= strength <= 1):
        raise ValueError(f"strength must lie between 0 and 1, got {strength}")
    schedule, device = draft.recipe.schedule, device or backbone.device
    total = draft.total.to(device)
    dispatch = residual.dispatch
    for scale, cells, bits in zip(dispatch.scales, dispatch.cells, residual.bits, strict=True):
        h, w = schedule.grids[scale]
        codes, cells = backbone.codes(bits.to(device)), cells.to(device)
        whole = codes.new_zeros(len(bits), h * w, bits.shape[-1])
        whole.scatter_(1, cells[..., None].expand_as(codes), codes)
        filled = torch.zeros(len(bits), h * w, dtype=torch.bool, device=device).scatter_(1, cells, True)
        total = total + strength * backbone.code_map(whole, scale, schedule, filled)
    return total
