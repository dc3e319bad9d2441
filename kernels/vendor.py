"""The vendor's operations that torch's public ones do not give: attention with its log-sum-exp, by which
parts of it are merged, and a matrix product that applies GELU before it writes.

On CUDA only, in half precision, with heads of at most 256 channels; what `ops.choose` found to work and to
mean what is said here.  Twins: reference.partial_attention, reference.linear_gelu.
"""

import torch
from torch import Tensor


def partial_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """See reference.partial_attention; FlashAttention 2.  The last axis of every tensor must be
    contiguous.
    """
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    out, log_sum, *_ = attend(q, k, v, 0.0, False, False, scale=scale)
    return out, log_sum


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See reference.linear_gelu."""
    flat = torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True)
    return flat.unflatten(0, x.shape[:-1])
