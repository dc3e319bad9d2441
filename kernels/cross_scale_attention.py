"""Triton: attention over two segments of keys and values, the cache and the new tokens, in one online
softmax; the cache may be in 8 bits.

torch must join the segments first, which reads and writes the whole cache of the layer.  Here both are read
where they lie. Work: 4 R H N M D floating-point operations; memory: every query, key, value and result once
(keys from L2 after that). Twin: reference.cross_scale_attention.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .reference import Int8Segment, Segment

MERGED = 16  # tokens of one head that a program merges


class Tile(NamedTuple):
    """How the work is cut: a program's queries, keys read at a time, warps, and loads under way at once."""

    queries: int
    keys: int
    warps: int
    stages: int


def tile_for(head_dim: int, dtype: torch.dtype) -> Tile:
    """A fixed choice a head size: fits the 99 KiB of shared memory of small cards (sm_86, sm_89).

    No autotuner: it may choose differently from start to start, and other tiles round differently, so that
    the same seed would draw another picture.  `benchmarks/kernels.py --tune` compares candidates.
    """
    if dtype == torch.float32:
        return Tile(32, 32, 8, 1)
    return Tile(128, 64, 8 if head_dim > 64 else 4, 3)


def cross_scale_attention(
    q: Tensor,
    segments: Sequence[Segment | Int8Segment],
    visible: Tensor | None = None,
    scale: float = 1.0,
    tile: Tile | None = None,
) -> Tensor:
    """See reference.cross_scale_attention, which also takes over where `visible` is a bool mask.

    The last axis of every tensor must be contiguous; all else may be strided.

    Args:
        tile: None = `tile_for`.
    """
    if visible is not None and visible.dim() > 1:
        return reference.cross_scale_attention(q, segments, visible, scale)
    rows, heads, tokens, size = q.shape
    (past_k, past_v, *scales), (k, v) = segments if len(segments) > 1 else _split(segments[0], tokens)
    k_scale, v_scale = scales or (None, None)
    out = torch.empty(rows, tokens, heads, size, dtype=q.dtype, device=q.device).transpose(1, 2)
    tile = tile or tile_for(size, q.dtype)
    grid = (triton.cdiv(tokens, tile.queries), rows * heads)
    with torch.cuda.device_of(q):
        _cross_scale_attention[grid](
            q, past_k, past_v, k_scale, v_scale, k, v, out, visible,
            tokens, past_k.shape[2], k.shape[2], heads, scale / math.log(2),
            *q.stride()[:3], *past_k.stride()[:3], *past_v.stride()[:3],
            *(k_scale.stride() if scales else (0, 0, 0)), *(v_scale.stride() if scales else (0, 0, 0)),
            *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            D=size, CHANNELS=max(16, triton.next_power_of_2(size)), QUERIES=tile.queries, KEYS=tile.keys,
            GROUPS=visible is not None, INT8=bool(scales), num_warps=tile.warps, num_stages=tile.stages,
        )
    return out


def merge_attention(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """See reference.merge_attention.  Results of any strides with their last axis contiguous; the
    log-sum-exps contiguous.
    """
    (a, log_a), (b, log_b) = first, second
    rows, heads, tokens, size = a.shape
    out = torch.empty(rows, tokens, heads, size, dtype=a.dtype, device=a.device).transpose(1, 2)
    with torch.cuda.device_of(a):
        _merge_attention[(triton.cdiv(tokens, MERGED), rows * heads)](
            a, log_a.contiguous(), b, log_b.contiguous(), out, tokens, heads,
            *a.stride()[:3], *b.stride()[:3], *out.stride()[:3],
            D=size, CHANNELS=triton.next_power_of_2(size), TOKENS=MERGED, num_warps=4,
        )
    return out


def _split(segment: Segment, tokens: int) -> tuple[Segment, Segment]:
    """One segment as two: what came before, and the last `tokens` tokens.  Views."""
    k, v = segment
    past = k.shape[2] - tokens
    return (k[:, :, :past], v[:, :, :past]), (k[:, :, past:], v[:, :, past:])


@triton.jit(do_not_specialize=["tokens", "past_tokens", "new_tokens"])
def _cross_scale_attention(
    q, past_k, past_v, k_scale, v_scale, k, v, out, group, tokens, past_tokens, new_tokens, heads, factor,
    q_row, q_head, q_token, pk_row, pk_head, pk_token, pv_row, pv_head, pv_token,
    ks_row, ks_head, ks_token, vs_row, vs_head, vs_token,
    k_row, k_head, k_token, v_row, v_head, v_token, out_row, out_head, out_token,
    D: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, GROUPS: tl.constexpr,
    INT8: tl.constexpr,
):
    row, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, CHANNELS)[None, :]
    mask = (token < tokens)[:, None] & (channel < D)
    at = q + row * q_row + head * q_head + token[:, None].to(tl.int64) * q_token + channel
    queries = tl.load(at, mask=mask, other=0.0)
    own = tl.load(group + token, mask=token < tokens, other=-1) if GROUPS else token

    peak = tl.full((QUERIES,), -1e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mean = tl.zeros((QUERIES, CHANNELS), tl.float32)
    mean, total, peak = _attend(
        mean, total, peak, queries, own, group, factor, past_tokens,
        past_k + row * pk_row + head * pk_head, pk_token, past_v + row * pv_row + head * pv_head, pv_token,
        k_scale + row * ks_row + head * ks_head if INT8 else k_scale, ks_token,
        v_scale + row * vs_row + head * vs_head if INT8 else v_scale, vs_token,
        D, CHANNELS, KEYS, False, INT8,
    )
    mean, total, peak = _attend(
        mean, total, peak, queries, own, group, factor, new_tokens,
        k + row * k_row + head * k_head, k_token, v + row * v_row + head * v_head, v_token,
        k_scale, ks_token, v_scale, vs_token, D, CHANNELS, KEYS, GROUPS, False,
    )
    at = out + row * out_row + head * out_head + token[:, None].to(tl.int64) * out_token + channel
    tl.store(at, (mean / total[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _merge_attention(
    a, log_a, b, log_b, out, tokens, heads, a_row, a_head, a_token, b_row, b_head, b_token,
    out_row, out_head, out_token, D: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr,
):
    row, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = token < tokens
    mask = inside[:, None] & (channel < D)
    at = tl.program_id(1).to(tl.int64) * tokens + token
    difference = tl.load(log_b + at, mask=inside, other=0.0) - tl.load(log_a + at, mask=inside, other=0.0)
    fall = tl.exp(-tl.abs(difference))
    share = (tl.where(difference >= 0, 1.0, fall) / (1 + fall))[:, None]  # sigmoid, which cannot overflow
    place = token[:, None].to(tl.int64)
    first = tl.load(a + row * a_row + head * a_head + place * a_token + channel, mask=mask, other=0.0)
    second = tl.load(b + row * b_row + head * b_head + place * b_token + channel, mask=mask, other=0.0)
    first, second = first.to(tl.float32), second.to(tl.float32)
    merged = (first + share * (second - first)).to(out.dtype.element_ty)
    tl.store(out + row * out_row + head * out_head + place * out_token + channel, merged, mask=mask)


@triton.jit
def _attend(
    mean, total, peak, queries, own, group, factor, length, k, k_token, v, v_token,
    k_scale, ks_token, v_scale, vs_token,
    D: tl.constexpr, CHANNELS: tl.constexpr, KEYS: tl.constexpr, GROUPS: tl.constexpr, INT8: tl.constexpr,
):
    """Take the keys and values of one segment into the running softmax.

    Hidden scores are -1e30, not minus infinity: what they add while nothing was seen yet is finite, and is
    wiped out by the first score that counts.  Every token sees at least itself.  A key's scale is applied to
    its scores; the numbers themselves, up to 127, are exact in every dtype.
    """
    key, channel = tl.arange(0, KEYS), tl.arange(0, CHANNELS)
    k_at = k + channel[:, None] + key[None, :].to(tl.int64) * k_token
    v_at = v + channel[None, :] + key[:, None].to(tl.int64) * v_token
    for start in range(0, length, KEYS):
        inside = start + key < length
        keys = tl.load(k_at, mask=(channel < D)[:, None] & inside[None, :], other=0.0)
        scores = tl.dot(queries, keys.to(queries.dtype), input_precision="ieee") * factor  # of base 2
        if INT8:
            at = (start + key).to(tl.int64)
            scores = scores * tl.load(k_scale + at * ks_token, mask=inside, other=0.0)[None, :]
        seen = inside[None, :]
        if GROUPS:
            seen = seen & (own[:, None] == tl.load(group + start + key, mask=inside, other=-1)[None, :])
        scores = tl.where(seen, scores, -1e30)

        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        values = tl.load(v_at, mask=inside[:, None] & (channel < D)[None, :], other=0.0)
        if INT8:
            strength = tl.load(v_scale + at * vs_token, mask=inside, other=0.0)
            values = (values.to(tl.float32) * strength[:, None]).to(queries.dtype)
        mean = tl.dot(weights.to(values.dtype), values, mean * decay[:, None], input_precision="ieee")
        total = total * decay + tl.sum(weights, axis=1)
        peak = new_peak
        k_at += KEYS * k_token
        v_at += KEYS * v_token
    return mean, total, peak
