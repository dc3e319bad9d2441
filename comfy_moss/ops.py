"""The only door to kernels/: the operations of a transformer block, as plain torch or as Triton kernels.

Nothing is probed when this file is imported; `choose` is asked once, and its answer travels with the model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import reference
from .kernels.reference import Segment, modulated_norm

__all__ = [
    "BACKENDS", "TORCH", "Kernels", "Segment", "area_mean", "choose", "modulated_norm", "triton_kernels",
]

BACKENDS = ("auto", "torch", "triton")
FEW_QUERIES = 512  # below, copying the cache costs Hopper's vendor attention more than Triton's products do


@dataclass(frozen=True)
class Kernels:
    """One implementation of every operation; each is described at its twin in kernels/reference.py."""

    name: str
    cosine_rope2d: Callable[..., tuple[Tensor, Tensor, Tensor]]
    cross_scale_attention: Callable[..., Tensor]
    modulated_norm: Callable[..., Tensor]
    affine_norm: Callable[..., Tensor]
    gated_add: Callable[..., Tensor]


TORCH = Kernels(
    "torch",
    reference.cosine_rope2d,
    reference.cross_scale_attention,
    reference.modulated_norm,
    reference.affine_norm,
    reference.gated_add,
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
    if backend == "auto":
        kernels = replace(kernels, name="auto", cross_scale_attention=_faster_attention(kernels, device))
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
    try:  # an installed Triton may still lack a compiler: run the smallest kernel once
        one = torch.ones(1, 1, 32, device=device)
        triton_kernels().gated_add(one, one, one)
    except Exception as error:  # of any library on the way
        reason = str(error).strip().partition("\n")[0]
        return f"triton is installed but does not work ({type(error).__name__}: {reason})"
    return None


def triton_kernels() -> Kernels:
    """Every Triton kernel, with or without a device to run on.

    Raises:
        ImportError: triton is not installed.
    """
    from .kernels import cross_scale_attention, modulated_norm, rope2d

    return Kernels(
        "triton",
        rope2d.cosine_rope2d,
        cross_scale_attention.cross_scale_attention,
        modulated_norm.modulated_norm,
        modulated_norm.affine_norm,
        modulated_norm.gated_add,
    )


def _faster_attention(kernels: Kernels, device: torch.device) -> Callable[..., Tensor]:
    """Attention that takes, at each call, torch's own or Triton's by `_triton_is_faster`."""
    slow_triton = torch.cuda.get_device_capability(device)[0] in (9, 10)

    def attend(
        q: Tensor, segments: Sequence[Segment], visible: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        faster = _triton_is_faster(q, segments, visible, slow_triton)
        return (kernels if faster else TORCH).cross_scale_attention(q, segments, visible, scale)

    return attend


def _triton_is_faster(
    q: Tensor, segments: Sequence[Segment], visible: Tensor | None, slow_triton: bool
) -> bool:
    """Whether Triton's attention wins: a rule by arithmetic, not yet measured (`benchmarks/kernels.py` will
    tell).

    On one segment the vendor's kernels win.  On two, torch first copies all keys and values: 8 bytes moved
    for each of their tokens and channels, against 4 N operations of attention.  At F FLOP/s and W bytes/s the
    copy takes 2 F / (N W) of attention's own time: 250 / N on an H200 (600 T, 4.8 T), 320 / N on an RTX 4090
    (160 T, 1 T).  Triton copies nothing, but its products take about 1.5 times as long as the vendor's on
    Hopper and B200 (`slow_triton`), and hardly longer elsewhere.  Scales as a mask cost Triton nothing and
    bar torch from its fast kernels.  In float32 the vendor's win.
    """
    if q.dtype == torch.float32 or len(segments) == 1:
        return False
    return visible is not None or not slow_triton or q.shape[2] <= FEW_QUERIES
