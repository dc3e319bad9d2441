"""Plain torch twins of every kernel: the definition, the CPU path and the yardstick of the tests.

Each computes in the precision of its input or better, so that in float64 it is the exact answer.
Shapes: R rows, N tokens, C channels, H heads, D = C / H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_SCALE = math.log(100)  # of a head's queries

Segment = tuple[Tensor, Tensor]  # keys and values, each (R, H, M, D)


class Int8Segment(NamedTuple):
    """Keys and values in 8 bits, each number times the scale of its token and head.

    Attributes:
        k, v: (R, H, M, D) int8, in [-127, 127].
        k_scale, v_scale: (R, H, M) float32, a 127th of the largest magnitude.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor
    v_scale: Tensor


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., D) in 8 bits by its largest magnitude: (..., D) int8, and the scales (...) float32."""
    x = x.float()
    scale = x.abs().amax(-1) / 127
    steps = x / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]  # zeros have the scale 0
    return steps.round_().to(torch.int8), scale


def dequantized(segment: Segment | Int8Segment, dtype: torch.dtype) -> Segment:
    """Keys and values (R, H, M, D) in dtype; those that are not in 8 bits as they are."""
    if not isinstance(segment, Int8Segment):
        return segment
    k, v, k_scale, v_scale = segment
    return tuple((part * scale[..., None]).to(dtype) for part, scale in ((k, k_scale), (v, v_scale)))


def rope2d(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs: x (R, H, N, D), cos and sin (R or 1, N, D / 2) -> x's shape, float32 at
    least.
    """
    pairs = x.unflatten(-1, (-1, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def cosine_rope2d(
    qkv: Tensor, log_scale: Tensor, cos: Tensor, sin: Tensor, into: Segment | None = None
) -> tuple[Tensor, ...]:
    """Queries, keys and values of cosine attention from the packed projection.

    Queries and keys are L2-normalised and rotated, queries also multiplied by exp(min(log_scale, ln 100)).

    Args:
        qkv: (R, N, 3, H, D).
        log_scale: (H,).
        cos, sin: (R or 1, N, D / 2), float32 or better.
        into: memory for keys and values, each (R, H, N, D), such as a place in the KV cache.

    Returns:
        q, k, v, each (R, H, N, D) in qkv's dtype; k and v are those of `into` if given, else v is a view of
        qkv.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    strength = _float(log_scale).clamp_max(MAX_LOG_SCALE).exp()[:, None, None]
    q = rope2d(F.normalize(_float(q), dim=-1) * strength, cos, sin).to(qkv.dtype)
    k = rope2d(F.normalize(_float(k), dim=-1), cos, sin).to(qkv.dtype)
    return (q, k, v) if into is None else (q, into[0].copy_(k), into[1].copy_(v))


def _float(x: Tensor) -> Tensor:
    """Float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def cross_scale_attention(
    q: Tensor, segments: Sequence[Segment | Int8Segment], visible: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Attention of N new tokens over the cache and over each other.

    Args:
        q: (R, H, N, D), the new tokens, of one scale or of several.
        segments: one or two pairs of keys and values, each (R, H, M, D): everything there is to attend to, M
            tokens in all, the new tokens last.  The first of two may be in 8 bits.
        visible: which new token sees which; what came before them is always visible.
            None: all see all (CSSA).  (N,) int32: a token sees those with its own number (the scale, in the
                SA ablation).
            (R or 1, N, N) bool: row sees column.
        scale: factor on the dot products.

    Returns:
        (R, H, N, D)
    """
    parts = zip(*(dequantized(segment, q.dtype) for segment in segments), strict=True)
    k, v = (part[0] if len(part) == 1 else torch.cat(part, dim=2) for part in parts)
    if visible is not None:
        mask = visible if visible.dim() == 3 else (visible[:, None] == visible)[None]
        visible = F.pad(mask, (k.shape[2] - q.shape[2], 0), value=True).unsqueeze(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)


def partial_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys (R, H, M, D): the result (R, H, N, D), and the logarithm of the sum of
    the exponentials of each query's scores (R, H, N), by which such parts are merged.
    """
    scores = (q @ k.transpose(-1, -2)) * scale
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def merge_attention(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over the keys of two parts, from each part's result and log-sum-exp: (R, H, N, D) in the
    results' dtype.
    """
    (a, log_a), (b, log_b) = first, second
    share = torch.sigmoid(_float(log_b) - _float(log_a))[..., None]  # of the second part
    return (_float(a) + share * (_float(b) - _float(a))).to(a.dtype)


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-6
) -> Tensor:
    """LayerNorm without weights, times (1 + scale), plus shift: x (R, N, C), both (R, 1, C) -> dtype (None:
    x's).
    """
    return (F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift).to(dtype or x.dtype)


def affine_norm(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-6
) -> Tensor:
    """LayerNorm in x's precision, whatever the weights': x (R, N, C), both (C,) -> dtype (None: x's)."""
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps).to(dtype or x.dtype)


def add_norm(
    x: Tensor, update: Tensor, gamma: Tensor | None, gain: Tensor, shift: Tensor, modulated: bool,
    dtype: torch.dtype | None = None, eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Add a residual branch's update, and norm the sum for the next branch.

    Args:
        x: (R, N, C), the residual stream; update: (R, N, C), maybe of a lower precision.
        gamma: (R, 1, C) factor on the update; None = 1.
        gain, shift: of `modulated_norm` if modulated, else of `affine_norm`.

    Returns:
        x + gamma * update in x's dtype, and its norm in `dtype` (None: x's).
    """
    x = x + update if gamma is None else gated_add(x, gamma, update)
    norm = modulated_norm if modulated else affine_norm
    return x, norm(x, gain, shift, dtype, eps)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (..., C) through a linear map (D, C) and GELU in its tanh form: (..., D)."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """GroupNorm, then SiLU: x (B, C, H, W), weight and bias (C,) -> x's shape and dtype."""
    return F.silu(F.group_norm(x, groups, weight, bias, eps), inplace=True)


def gated_add(x: Tensor, gamma: Tensor, y: Tensor) -> Tensor:
    """x + gamma * y: x and y (R, N, C), gamma (R, 1, C); y may be of a lower precision than the residual
    stream x.
    """
    return x + gamma * y
