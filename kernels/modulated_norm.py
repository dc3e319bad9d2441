"""Triton: the residual add, LayerNorm with its scale, shift and rounding in one launch; each alone, too.

torch takes five launches for the modulated norm and two for the add, and writes the intermediates in float32.
Twins: reference.add_norm, reference.modulated_norm, reference.affine_norm, reference.gated_add.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-6
) -> Tensor:
    """See reference.modulated_norm.  The last axis of every tensor must be contiguous."""
    return _norm(x, scale, shift, True, dtype, eps)[1]


def affine_norm(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None, eps: float = 1e-6
) -> Tensor:
    """See reference.affine_norm.  The last axis of every tensor must be contiguous."""
    return _norm(x, weight, bias, False, dtype, eps)[1]


def add_norm(
    x: Tensor, update: Tensor, gamma: Tensor | None, gain: Tensor, shift: Tensor, modulated: bool,
    dtype: torch.dtype | None = None, eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """See reference.add_norm.  The last axis of every tensor must be contiguous."""
    return _norm(x, gain, shift, modulated, dtype, eps, update, gamma)


def _norm(
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    modulated: bool,
    dtype: torch.dtype | None,
    eps: float,
    update: Tensor | None = None,
    gamma: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x plus gamma times an update, if there is one, and the norm of that."""
    rows, tokens, width = x.shape
    out = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    added = x if update is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    y, gate = x if update is None else update, x if gamma is None else gamma
    strides = (gain.stride(0), shift.stride(0)) if modulated else (0, 0)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _norm_kernel[(rows * tokens,)](
            x, y, gate, gain, shift, added, out, tokens,
            *x.stride()[:2], *y.stride()[:2], gate.stride(0), *strides, *added.stride()[:2],
            *out.stride()[:2], EPS=eps, BASE=float(modulated), ADD=update is not None,
            GATE=gamma is not None, C=width, BLOCK=block, num_warps=_warps(block),
        )
    return added, out


def gated_add(x: Tensor, gamma: Tensor, y: Tensor) -> Tensor:
    """See reference.gated_add.  The last axis of every tensor must be contiguous."""
    rows, tokens, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _gated_add_kernel[(rows * tokens,)](
            x, gamma, y, out, tokens, *x.stride()[:2], gamma.stride(0), *y.stride()[:2], *out.stride()[:2],
            C=width, BLOCK=block, num_warps=_warps(block),
        )
    return out


def _warps(block: int) -> int:
    """Warps for one token of that many channels: 16 channels a thread, within limits."""
    return min(max(block // 512, 1), 8)


@triton.jit(do_not_specialize=["tokens"])
def _norm_kernel(
    x, y, gamma, scale, shift, added, out, tokens, x_row, x_token, y_row, y_token, gamma_row, scale_row,
    shift_row, added_row, added_token, out_row, out_token, EPS: tl.constexpr, BASE: tl.constexpr,
    ADD: tl.constexpr, GATE: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):
    row, token = (tl.program_id(0) // tokens).to(tl.int64), (tl.program_id(0) % tokens).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    value = tl.load(x + row * x_row + token * x_token + channel, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        update = tl.load(y + row * y_row + token * y_token + channel, mask=mask, other=0.0).to(tl.float32)
        if GATE:
            update *= tl.load(gamma + row * gamma_row + channel, mask=mask, other=0.0).to(tl.float32)
        value = (value + update).to(added.dtype.element_ty)
        tl.store(added + row * added_row + token * added_token + channel, value, mask=mask)
        value = value.to(tl.float32)
    centred = tl.where(mask, value - tl.sum(value, axis=0) / C, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / C + EPS)
    gain = BASE + tl.load(scale + row * scale_row + channel, mask=mask, other=0.0).to(tl.float32)
    value = normed * gain + tl.load(shift + row * shift_row + channel, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * out_row + token * out_token + channel, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _gated_add_kernel(
    x, gamma, y, out, tokens, x_row, x_token, gamma_row, y_row, y_token, out_row, out_token,
    C: tl.constexpr, BLOCK: tl.constexpr,
):
    row, token = (tl.program_id(0) // tokens).to(tl.int64), (tl.program_id(0) % tokens).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    gate = tl.load(gamma + row * gamma_row + channel, mask=mask, other=0.0).to(tl.float32)
    update = tl.load(y + row * y_row + token * y_token + channel, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + row * x_row + token * x_token + channel, mask=mask, other=0.0).to(tl.float32)
    value += gate * update
    tl.store(out + row * out_row + token * out_token + channel, value.to(out.dtype.element_ty), mask=mask)
