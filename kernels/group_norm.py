"""Triton: GroupNorm and SiLU of a feature map in three launches, the map read twice and written once.

torch reads it three times and writes it twice.  Moments are merged from parts (Chan, Golub and LeVeque
1979), so that nothing cancels.  For maps whose channels lie side by side (channels last), as the vendor's
convolutions want them in half precision.  Twin: reference.group_norm_silu.
"""

# No `from __future__ import annotations`: Triton before 3.3 interprets no tl.constexpr in a string.

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference

ELEMENTS = 8192  # that a program holds at a time
PARTS = 512  # of a map, at most, whose moments are merged


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """See reference.group_norm_silu, which takes over where channels do not lie side by side."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return reference.group_norm_silu(x, groups, weight, bias, eps)
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    padded, width = triton.next_power_of_2(groups), triton.next_power_of_2(channels // groups)
    tile = max(1, ELEMENTS // (padded * width))
    turns = triton.cdiv(triton.cdiv(pixels, tile), PARTS)
    parts = triton.cdiv(pixels, tile * turns)
    moments = torch.empty(batch, 3, parts, groups, dtype=torch.float32, device=x.device)
    told = torch.empty(batch, 2, groups, dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    sizes = {"C": channels, "G": groups, "GROUPS": padded, "num_warps": 8}
    with torch.cuda.device_of(x):
        _moments[(parts, batch)](x, moments, pixels, parts, turns, WIDTH=width, TILE=tile, **sizes)
        _merge[(batch,)](moments, told, parts, eps, PARTS=triton.next_power_of_2(parts), **sizes)
        block = triton.next_power_of_2(channels)
        rows = max(1, ELEMENTS // block)
        _apply[(triton.cdiv(pixels, rows), batch)](
            x, told, weight, bias, out, pixels, C=channels, G=groups, BLOCK=block, ROWS=rows, num_warps=8
        )
    return out


@triton.jit(do_not_specialize=["pixels", "parts", "turns"])
def _moments(
    x, moments, pixels, parts, turns, C: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr,
):
    """Count, mean and squared deviation of every group over one part of the pixels."""
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    group = tl.arange(0, GROUPS)[None, :, None]
    inner = tl.arange(0, WIDTH)[None, None, :]
    known = (group < G) & (inner < C // G)
    count = tl.zeros((GROUPS,), tl.float32)
    mean = tl.zeros((GROUPS,), tl.float32)
    spread = tl.zeros((GROUPS,), tl.float32)
    for turn in range(0, turns):
        pixel = (part * turns + turn) * TILE + tl.arange(0, TILE)[:, None, None]
        mask = known & (pixel < pixels)
        at = x + row * pixels * C + pixel.to(tl.int64) * C + group * (C // G) + inner
        value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        added = tl.sum(tl.sum(mask.to(tl.float32), axis=2), axis=0)
        own = tl.sum(tl.sum(value, axis=2), axis=0) / tl.maximum(added, 1.0)
        off = tl.where(mask, value - own[None, :, None], 0.0)
        total = count + added
        share = added / tl.maximum(total, 1.0)
        step = own - mean
        spread += tl.sum(tl.sum(off * off, axis=2), axis=0) + step * step * count * share
        mean += step * share
        count = total
    place = tl.arange(0, GROUPS)
    at = moments + (row * 3 * parts + part) * G + place
    tl.store(at, count, mask=place < G)
    tl.store(at + parts * G, mean, mask=place < G)
    tl.store(at + 2 * parts * G, spread, mask=place < G)


@triton.jit(do_not_specialize=["parts"])
def _merge(
    moments, told, parts, eps, C: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr
):
    """Mean, and one over the standard deviation, of every group of one map."""
    row = tl.program_id(0).to(tl.int64)
    part, group = tl.arange(0, PARTS)[:, None], tl.arange(0, GROUPS)[None, :]
    mask = (part < parts) & (group < G)
    at = moments + (row * 3 * parts + part) * G + group
    count = tl.load(at, mask=mask, other=0.0)
    mean = tl.load(at + parts * G, mask=mask, other=0.0)
    total = tl.maximum(tl.sum(count, axis=0), 1.0)
    middle = tl.sum(count * mean, axis=0) / total
    off = mean - middle[None, :]
    spread = tl.sum(tl.load(at + 2 * parts * G, mask=mask, other=0.0) + count * off * off, axis=0)
    place = tl.arange(0, GROUPS)
    tl.store(told + row * 2 * G + place, middle, mask=place < G)
    tl.store(told + row * 2 * G + G + place, tl.rsqrt(spread / total + eps), mask=place < G)


@triton.jit(do_not_specialize=["pixels"])
def _apply(
    x, told, weight, bias, out, pixels, C: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    mask = (pixel < pixels) & (channel < C)
    group = told + row * 2 * G + channel // (C // G)
    mean = tl.load(group, mask=channel < C, other=0.0)
    gain = tl.load(group + G, mask=channel < C, other=0.0)
    gain *= tl.load(weight + channel, mask=channel < C, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
    at = row * pixels * C + pixel.to(tl.int64) * C + channel
    value = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean) * gain + shift
    fall = tl.exp(-tl.abs(value))
    value *= tl.where(value >= 0, 1.0, fall) / (1 + fall)  # sigmoid, which cannot overflow
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
