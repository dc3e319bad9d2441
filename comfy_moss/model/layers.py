"""What models know of their layers, whose classes are an argument, `operations`, as in ComfyUI's own models.

The default is plain torch.  A host gives classes of its own (ComfyUI's `comfy.ops`) whose weights may lie on
another device, be stored in another type or be changed on the way; each brings them where its input is when
it is called.  Hence three rules.  A layer is called, and its weights are read past it only where
`is_plain`.  Parameters outside of layers are cast where they are used.  Matrices may be stored in fewer bits
than their layer computes in, vectors (biases, gains) never: the precision of a layer is that of its bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Layers:
    """How a model's weights are stored, and which classes its layers are of.

    Attributes:
        stored: type of the blocks' matrices; None = the one that the blocks compute in.
        codec: what the codec computes in; None = what the blocks compute in.
        pick: (type that weights are stored in, type to compute in, whether the file holds quantised weights)
            -> `operations`.
    """

    stored: torch.dtype | None = None
    codec: torch.dtype | None = None
    pick: Callable[[torch.dtype, torch.dtype, bool], Any] = lambda stored, dtype, quantised: nn

    def dtype_of(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.dtype:
        """What a weight of a block that computes in `dtype` is stored in."""
        return self.stored or dtype if name.endswith(".weight") and len(shape) == 2 else dtype


TORCH_LAYERS = Layers()


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: as who moves its weights says by its attribute `device`, as ComfyUI's
    ModelPatcher does, or else where the weights are.
    """
    told = getattr(module, "device", None)
    return next(module.parameters()).device if told is None else told


def is_plain(layer: nn.Module, x: Tensor, any_type: bool = False) -> bool:
    """Whether a layer does with x no more than its torch class does with its weights as they lie there.

    Args:
        any_type: the weights may be of another type than x.
    """
    weight = layer.weight
    changed = getattr(layer, "weight_function", ()) or getattr(layer, "bias_function", ())
    stored = type(weight) in (nn.Parameter, Tensor) and (any_type or weight.dtype == x.dtype)
    return stored and weight.device == x.device and not changed


def finite(x: Tensor) -> Tensor:
    """In float16 its largest number in the place of infinity, which would spoil all that follows; other types
    as they are (docs/precision.md).
    """
    largest = torch.finfo(torch.float16).max
    return x.clamp(-largest, largest) if x.dtype == torch.float16 else x


class PackedBias(nn.Module):
    """A projection to keys and values, maybe to queries too, whose bias released files keep apart: `v_bias`,
    maybe `q_bias`; keys have none.
    """

    q_bias: Tensor | None
    v_bias: Tensor | None

    @property
    def packed(self) -> nn.Module:
        """The projection; it has no bias of its own until `join`."""
        raise NotImplementedError

    def join(self) -> None:
        """Give the projection its bias, once the weights will not change any more."""
        if self.packed.bias is None:
            self.packed.bias = nn.Parameter(self._bias(), requires_grad=False)
            self.q_bias = self.v_bias = None

    def _bias(self) -> Tensor:
        q, none = getattr(self, "q_bias", None), torch.zeros_like(self.v_bias)
        return torch.cat([none, self.v_bias] if q is None else [q, none, self.v_bias])

    def project(self, x: Tensor) -> Tensor:
        """x (..., C) -> queries, keys and values, or keys and values, side by side."""
        layer = self.packed
        return F.linear(x, layer.weight, self._bias()) if layer.bias is None else layer(x)


def join_biases(module: nn.Module) -> None:
    """Have every `PackedBias` in a module join its bias."""
    for part in module.modules():
        if isinstance(part, PackedBias):
            part.join()
