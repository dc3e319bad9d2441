"""The model in the host's hands: weights are loaded, moved and unloaded by ComfyUI's model management."""

from __future__ import annotations

from dataclasses import dataclass, field

import comfy.model_management as mm
import comfy.model_patcher
import torch
import torch.nn.functional as F
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ..images import to_image
from ..model.backbone import Backbone
from ..model.library import ModelFiles
from ..pipeline.slot import CacheSlot

SKETCH = 512  # longest side of a sketch in pixels
ACTIVATIONS = 64  # bytes a token, row and channel that one forward pass takes at most, roughly


def manage(module: nn.Module, load_device: torch.device, offload_device: torch.device) -> comfy.model_patcher.ModelPatcher:
    """The host's handle on a module.  Hosts before 0.11 have one kind only."""
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(module, load_device=load_device, offload_device=offload_device)


@dataclass(frozen=True, repr=False)
class MossModel:
    """A model with all its parts.

    Attributes:
        patcher: the host's handle on the transformer; this very name is how the host recognises models.
        vae_patcher: the same for the codec.
        slot: owner of the KV cache of the draft in use; emptied when the host unloads the model.
    """

    backbone: Backbone
    files: ModelFiles
    patcher: comfy.model_patcher.ModelPatcher
    vae_patcher: comfy.model_patcher.ModelPatcher
    slot: CacheSlot = field(default_factory=CacheSlot)

    def __post_init__(self) -> None:
        slot = self.slot  # the callback must not hold the model: that circle would keep its weights until garbage is collected
        self.patcher.add_callback(CallbacksMP.ON_DETACH, lambda *_: slot.clear())

    def __repr__(self) -> str:
        return f"model {self.files.name}"

    def load(self, cached: int, rows: int, largest: int) -> None:
        """Have the host bring all weights to the device and make room.

        Args:
            cached: tokens a row that the KV caches will hold together.
            rows: batch rows, unconditional ones included.
            largest: tokens of the largest forward pass.
        """
        cache = self.backbone.cache_bytes(rows, cached)
        work = rows * largest * self.backbone.width * ACTIVATIONS
        mm.load_models_gpu([self.patcher, self.vae_patcher], memory_required=cache + work, force_full_load=True)

    @torch.inference_mode()
    def sketch(self, total: Tensor) -> Tensor:
        """The sum of codes (B, c, H, W) as small pictures (B, h, w, 3) in [0, 1], quick to decode."""
        longest = max(total.shape[2:]) * self.backbone.stride
        if longest > SKETCH:
            size = [max(1, round(side * SKETCH / longest)) for side in total.shape[2:]]
            total = F.interpolate(total, size=size, mode="area")
        return torch.cat([to_image(self.backbone.decode(one[None].to(self.backbone.device))) for one in total])
