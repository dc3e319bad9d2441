"""The only door to kernels/: the operations of a transformer block, as plain torch or as Triton kernels.

Nothing is probed when this file is imported; `choose` is asked once, and its answer travels with the model.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import reference, vendor
from .kernels.reference import Int8Segment, Segment, dequantized, modulated_norm, quantize_int8

__all__ = [
    "BACKENDS", "TORCH", "Int8Segment", "Kernels", "Segment", "area_mean", "choose", "dequantized",
    "merged_attention", "modulated_norm", "quantize_int8", "triton_kernels",
]

BACKENDS = ("auto", "torch", "triton")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """One implementation of every operation; each is described at its twin in kernels/reference.py."""

    name: str
    cosine_rope2d: Callable[..., tuple[Tensor, Tensor, Tensor]]
    cross_scale_attention: Callable[..., Tensor]
    modulated_norm: Callable[..., Tensor]
    affine_norm: Callable[..., Tensor]
    gated_add: Callable[..., Tensor]
    add_norm: Callable[..., tuple[Tensor, Tensor]]
    linear_gelu: Callable[..., Tensor]
    merge_attention: Callable[..., Tensor]
    group_norm_silu: Callable[..., Tensor]


TORCH = Kernels(
    "torch",
    reference.cosine_rope2d,
    reference.cross_scale_attention,
    reference.modulated_norm,
    reference.affine_norm,
    reference.gated_add,
    reference.add_norm,
    reference.linear_gelu,
    reference.merge_attention,
    reference.group_norm_silu,
)


def area_mean(image: Tensor, grid: Sequence[int]) -> Tensor:
    """Every cell of a grid as the mean of the pixels that it covers, if in part: (..., H, W) -> (..., h, w).

    Apple's MPS has the operation only for sizes that divide; there two products with averaging matrices give
    the same up to rounding.
    """
    try:
        return F.adaptive_avg_pool2d(image, tuple(grid))
    except RuntimeError:
        rows, columns = (_averages(of, to).to(image) for of, to in zip(image.shape[-2:], grid, strict=True))
        return rows @ image @ columns.T


def _averages(pixels: int, cells: int) -> Tensor:
    """(cells, pixels): each pixel's share of a cell; 1 / n for the n from floor to ceiling of its edges."""
    edges = torch.arange(cells + 1) * pixels
    first, end = edges[:-1] // cells, -(-edges[1:] // cells)
    place = torch.arange(pixels)
    covered = (first[:, None] <= place) & (place < end[:, None])
    return covered / covered.sum(1, keepdim=True)


def choose(backend: str, device: torch.device | str) -> tuple[Kernels, str]:
    """The kernels to run a model on that device with, and why, in one sentence for the log.

    Args:
        backend: "torch", "triton" for every Triton kernel, or "auto" for the faster of both at each call;
            where Triton cannot run, that is torch.

    Raises:
        ValueError: unknown backend, or "triton" where it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"the backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "torch":
        return TORCH, "torch: as asked"
    device = torch.device(device)
    if obstacle := _obstacle(device):
        if backend == "triton":
            advice = "choose 'auto' or 'torch' instead"
            raise ValueError(f"the Triton kernels cannot run here: {obstacle}; {advice}")
        return TORCH, f"torch: {obstacle}"
    import triton

    kernels = triton_kernels()
    if _gelu_works(device):
        kernels = replace(kernels, linear_gelu=vendor.linear_gelu)
    if backend == "auto":
        merges = torch.cuda.get_device_capability(device)[0] in (9, 10) and _merging_works(kernels, device)
        kernels = replace(kernels, name="auto", cross_scale_attention=_faster_attention(kernels, merges))
    return kernels, f"triton {triton.__version__} on {torch.cuda.get_device_name(device)}"


def _obstacle(device: torch.device) -> str | None:
    """What keeps Triton from running there."""
    if device.type != "cuda":
        there = torch.cuda.is_available()
        return f"the model is on {device.type}, not on CUDA" if there else "no CUDA device"
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is no NVIDIA card of the RTX 30 series, A100 or newer"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:  # an installed Triton may still lack a compiler, or break on products: run a small kernel with one
        part = torch.ones(1, 1, 16, 32, device=device).half()
        found = triton_kernels().cross_scale_attention(part, ((part, part), (part, part)))
        if not bool((found == 1).all()):
            return "triton is installed but computes wrong numbers"
    except Exception as error:  # of any library on the way
        reason = str(error).strip().partition("\n")[0]
        return f"triton is installed but does not work ({type(error).__name__}: {reason})"
    return None


def triton_kernels() -> Kernels:
    """Every Triton kernel, with or without a device to run on.

    Raises:
        ImportError: triton is not installed.
    """
    from .kernels import cross_scale_attention, group_norm, modulated_norm, rope2d

    return Kernels(
        "triton",
        rope2d.cosine_rope2d,
        cross_scale_attention.cross_scale_attention,
        modulated_norm.modulated_norm,
        modulated_norm.affine_norm,
        modulated_norm.gated_add,
        modulated_norm.add_norm,
        reference.linear_gelu,  # no Triton: see vendor.linear_gelu
        cross_scale_attention.merge_attention,
        group_norm.group_norm_silu,
    )


def _faster_attention(kernels: Kernels, merges: bool) -> Callable[..., Tensor]:
    """Attention that takes, at each call, torch's own, the vendor's in two parts, or Triton's.

    In float32, and on one segment, torch's own wins.  Two segments it would have to join first, which
    copies the whole cache.  Instead, Triton reads both where they lie; but on Hopper and B200 its products
    take about 1.5 times as long as the vendor's, so there the vendor is called on the cache and on the new
    tokens, and both results are merged by their log-sum-exp.  Where tokens see their own scale alone (SA),
    Triton hides the others for nothing, while a mask bars torch from its fast kernels.  A cache in 8 bits
    Triton alone reads as it is; others would have to widen all of it.  A rule by arithmetic, not yet
    measured (`benchmarks/kernels.py` will tell).

    Args:
        merges: the vendor's products are so much faster here, and its log-sum-exp is there.
    """

    def attend(
        q: Tensor, segments: Sequence[Segment | Int8Segment], visible: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        if q.dtype == torch.float32 or (len(segments) == 1 and visible is None):
            return TORCH.cross_scale_attention(q, segments, visible, scale)
        if merges and visible is None and not isinstance(segments[0], Int8Segment):
            return merged_attention(q, segments, kernels.merge_attention, scale)
        return kernels.cross_scale_attention(q, segments, visible, scale)

    return attend


def merged_attention(
    q: Tensor, segments: Sequence[Segment], merge: Callable[..., Tensor], scale: float = 1.0
) -> Tensor:
    """reference.cross_scale_attention of two segments without `visible`, by the vendor's kernel on each."""
    first, second = (vendor.partial_attention(q, k, v, scale) for k, v in segments)
    return merge(first, second)


def _gelu_works(device: torch.device) -> bool:
    """Whether the vendor's product with GELU is there, and applies the tanh form."""
    x = torch.linspace(-4, 4, 64, device=device).half()[:, None] * torch.eye(64, device=device).half()
    weight, bias = torch.eye(64, device=device).half(), torch.zeros(64, device=device).half()
    try:
        off = (vendor.linear_gelu(x, weight, bias) - reference.linear_gelu(x, weight, bias)).float().abs()
    except Exception as error:  # of any library on the way
        log.debug(f"the vendor's product with GELU does not run: {error}")
        return False
    return bool((off <= 1e-4 + 2e-3 * x.float().clamp_min(0)).all())  # the other form is off by 5e-4 below 0


def _merging_works(kernels: Kernels, device: torch.device) -> bool:
    """Whether the vendor's operation is there and says what it is taken to say, by a small example."""
    q, *parts = torch.linspace(-2, 2, 5 * 16 * 64, device=device).view(5, 1, 1, 16, 64).sin().bfloat16()
    segments = ((parts[0], parts[1]), (parts[2], parts[3]))
    return _agrees(lambda: merged_attention(q, segments, kernels.merge_attention), q, segments)


def _agrees(attend: Callable[[], Tensor], q: Tensor, segments: Sequence[Segment]) -> bool:
    """Whether an attention runs and gives what the definition gives, as far as half precision goes."""
    try:
        ours, right = attend().float(), TORCH.cross_scale_attention(q.float(), _in_float(segments))
    except Exception as error:  # of any library on the way
        log.debug(f"an attention kernel does not run: {error}")
        return False
    return bool((ours - right).abs().max() < 0.05)


def _in_float(segments: Sequence[Segment]) -> list[Segment]:
    return [(k.float(), v.float()) for k, v in segments]
