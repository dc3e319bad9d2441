"""Triton: normalise, scale and rotate queries and keys in one launch, from the packed projection into the KV
cache.

torch takes about 25 launches for this and writes every intermediate to memory.  Here each number is read once
and written once; values that need not move are not touched at all.  Twin: reference.cosine_rope2d.
"""

# No `from __future__ import annotations`: Triton before 3.3 interprets no tl.constexpr in a string.

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import MAX_LOG_SCALE, Segment

TOKENS = 16  # a program's share: so many tokens of one head


def cosine_rope2d(
    qkv: Tensor, log_scale: Tensor, cos: Tensor, sin: Tensor, into: Segment | None = None
) -> tuple[Tensor, ...]:
    """See reference.cosine_rope2d.  Every tensor must be contiguous along its last axis, and log_scale
    altogether.
    """
    rows, tokens, _, heads, size = qkv.shape
    q = torch.empty(rows, heads, tokens, size, dtype=qkv.dtype, device=qkv.device)
    k, v = (torch.empty_like(q), qkv[:, :, 2].transpose(1, 2)) if into is None else into
    grid = (triton.cdiv(tokens, TOKENS), heads, rows)
    with torch.cuda.device_of(qkv):
        _cosine_rope2d[grid](
            qkv, log_scale, cos, sin, q, k, v, tokens,
            *qkv.stride()[:4], *_strides(cos), *_strides(sin),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            D=size, PAIRS=triton.next_power_of_2(size // 2), TOKENS=TOKENS,
            MAX_LOG_SCALE=MAX_LOG_SCALE, COPY_V=into is not None, num_warps=4,
        )
    return q, k, v


def _strides(table: Tensor) -> tuple[int, int]:
    """Of a rotary table that may be shared by all rows."""
    return (table.stride(0) if len(table) > 1 else 0), table.stride(1)


@triton.jit(do_not_specialize=["tokens"])
def _cosine_rope2d(
    qkv, log_scale, cos, sin, q, k, v, tokens,
    x_row, x_token, x_part, x_head, cos_row, cos_token, sin_row, sin_token,
    q_row, q_head, q_token, k_row, k_head, k_token, v_row, v_head, v_token,
    D: tl.constexpr, PAIRS: tl.constexpr, TOKENS: tl.constexpr,
    MAX_LOG_SCALE: tl.constexpr, COPY_V: tl.constexpr,
):
    head, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    pair, channel = tl.arange(0, PAIRS)[None, :], tl.arange(0, 2 * PAIRS)[None, :]
    table_mask = (token < tokens) & (pair < D // 2)
    mask = (token < tokens) & (channel < D)

    c = tl.load(cos + row * cos_row + token * cos_token + pair, mask=table_mask, other=0.0)
    s = tl.load(sin + row * sin_row + token * sin_token + pair, mask=table_mask, other=0.0)
    strength = tl.exp(tl.minimum(tl.load(log_scale + head).to(tl.float32), MAX_LOG_SCALE))

    x = qkv + row * x_row + token * x_token + head * x_head + channel  # queries; keys, values x_part apart
    unit = _unit(tl.load(x, mask=mask, other=0.0)) * strength
    out = q + row * q_row + head * q_head + token * q_token + channel
    tl.store(out, _rotated(unit, c, s, TOKENS, PAIRS).to(q.dtype.element_ty), mask=mask)

    unit = _unit(tl.load(x + x_part, mask=mask, other=0.0))
    out = k + row * k_row + head * k_head + token * k_token + channel
    tl.store(out, _rotated(unit, c, s, TOKENS, PAIRS).to(k.dtype.element_ty), mask=mask)

    if COPY_V:
        out = v + row * v_row + head * v_head + token * v_token + channel
        tl.store(out, tl.load(x + 2 * x_part, mask=mask, other=0.0), mask=mask)


@triton.jit
def _unit(x):
    """Rows of x (TOKENS, 2 * PAIRS) at length 1, in float32."""
    x = x.to(tl.float32)
    length = tl.sqrt(tl.sum(x * x, axis=1))
    return x / tl.maximum(length, 1e-12)[:, None]


@triton.jit
def _rotated(x, cos, sin, TOKENS: tl.constexpr, PAIRS: tl.constexpr):
    """Adjacent channels (a, b) -> (a cos - b sin, a sin + b cos)."""
    a, b = tl.split(tl.reshape(x, (TOKENS, PAIRS, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (TOKENS, 2 * PAIRS))
