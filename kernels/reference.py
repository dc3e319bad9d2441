"""Plain torch twins of every kernel: the definition, the CPU path and the yardstick of the tests.

Each computes in the precision of its input or better.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rope2d(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs: x (R, H, N, D), cos and sin (R or 1, N, D / 2).  Returns x's shape, float32 or better."""
    pairs = x.unflatten(-1, (-1, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def cosine_rope2d(x: Tensor, scale: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
    """L2-normalise each head vector of x (R, H, N, D), multiply by scale (H, 1, 1) if given, rotate, return in x's dtype."""
    unit = F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
    return rope2d(unit if scale is None else unit * scale, cos, sin).to(x.dtype)


def cross_scale_attention(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, visible: Tensor | None, scale: float
) -> Tensor:
    """Attention of new tokens over the cache and over each other.

    Args:
        q, k, v: (R, H, N, D), the new tokens, of one scale or of several.
        past_k, past_v: (R, H, P, D), the cache; always visible.
        visible: (R or 1, N, N) bool, which new token (row) sees which (column); None = all see all (CSSA).
        scale: factor on the dot products.

    Returns:
        (R, H, N, D)
    """
    if visible is not None:
        visible = F.pad(visible, (past_k.shape[2], 0), value=True).unsqueeze(1)
    k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm without weights, then (1 + scale) and shift; x (R, N, C), scale and shift (R, 1, C)."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift
