"""Which classes the layers of our models are of, and what they store and compute in: as the host chooses for
its own models, so that its options (`--lowvram`, `--fp8_e4m3fn-unet`, `--fp16-unet`, ...) mean the same here.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch

from ..model.layers import Layers
from ..model.library import ModelFiles
from ..model.tensors import open_tensors

NAMED = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WIDE = (torch.bfloat16, torch.float32)  # types that hold whatever activations grow to


def precision_of(name: str, files: ModelFiles) -> tuple[torch.dtype, Layers]:
    """What a model computes in, and how its layers are made.

    Args:
        name: a key of NAMED, or "auto": what the host would choose for a model of its own on this device.
    """
    if name in NAMED:
        dtype = NAMED[name]
        return dtype, Layers(codec=None if dtype in WIDE else torch.float32, pick=pick)
    known = [torch.bfloat16, torch.float16, torch.float32] if files.fits_float16 else list(WIDE)
    device = mm.get_torch_device()
    stored = mm.unet_dtype(device, _parameters(files), known)
    dtype = mm.unet_manual_cast(stored, device, known) or stored
    codec = mm.vae_dtype(mm.vae_device(), list(WIDE))
    return dtype, Layers(stored if stored != dtype else None, codec, pick)


def pick(stored: torch.dtype, dtype: torch.dtype, quantised: bool) -> Any:
    """The host's classes of layers, see `Layers.pick`."""
    device, compute = mm.get_torch_device(), None if stored == dtype else dtype
    if not quantised:
        return comfy.ops.pick_operations(stored, compute, device)
    told = SimpleNamespace(quant_config={"mixed_ops": True})
    return comfy.ops.pick_operations(stored, dtype, device, model_config=told)


def _parameters(files: ModelFiles) -> int:
    return sum(map(math.prod, open_tensors(files.transformer).shapes.values()))
