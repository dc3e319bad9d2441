"""Modules with their weights: built on the meta device, checked by names and shapes, then filled."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .contents import listing
from .layers import join_biases
from .quantized_weights import as_stored, dequantized
from .tensors import EIGHT_BITS, CheckpointError, Tensors, reading

# Tensors in such places belong to the computation: where a model has none, the file is of another model.
INNER = re.compile(r"(?:^|\.)(?:blocks|block|layers|mid|down|up)\.|lora_|adapter|^(?:encoder|decoder)\.")
log = logging.getLogger(__name__)


def build(path: Path, make: Callable[[], nn.Module]) -> nn.Module:
    """A module on the meta device, without memory.

    Args:
        path: of the file that says its sizes, for messages.

    Raises:
        CheckpointError: there is no module of such sizes.
    """
    with (
        torch.device("meta"),
        reading(path, "has sizes that do not fit together; it is of a model that is not known here"),
    ):
        return make()


def load_module(
    make: Callable[[Any], nn.Module], tensors: Tensors, dtype_of: Callable[[str], torch.dtype],
    device: torch.device | str | None = None, operations: Any = nn,
) -> nn.Module:
    """A module with its weights, read one tensor at a time; in eval mode, without gradients.

    Args:
        make: builds it, from the classes of its layers.
        dtype_of: parameter name -> dtype it gets.
        device: None = where the tensors are.
        operations: classes of its layers, see `layers`; others than torch's get weights in 8 bits as they are
            stored, and must be of a kind that reads them.

    Raises:
        CheckpointError: there is no module of such sizes; tensors are missing, of another shape, not finite
            or no floating-point numbers, or there are more of them inside of the blocks.  Names and shapes
            are checked before anything is read.  Other tensors left over are named in the log only: files
            carry buffers of training that nobody needs.
    """
    plain = build(tensors.path, lambda: make(nn))  # a host's layers may not say their sizes before they load
    wanted = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    values = dequantized(tensors)
    _check_names(values, wanted)
    module = plain if operations is nn else build(tensors.path, lambda: make(operations))
    stored = {} if operations is nn else as_stored(tensors)
    placed = {n: _place(values, n, dtype_of(n), device) for n in wanted if n not in stored}
    module.load_state_dict(placed | {n: value.to(device) for n, value in stored.items()}, assign=True)
    for name, value in placed.items():  # layers for quantised weights take all others in a type of their own
        parent, _, last = name.rpartition(".")
        if module.get_parameter(name).dtype != value.dtype:
            setattr(module.get_submodule(parent), last, nn.Parameter(value))
    module.eval().requires_grad_(False)
    join_biases(module)
    return module


def _check_names(tensors: Tensors, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse what `load_module` refuses by names and shapes."""
    problems = {
        "lacks the tensors": sorted(wanted.keys() - tensors.shapes.keys()),
        "has tensors of another size:": [
            n for n, shape in wanted.items() if tensors.shapes.get(n, shape) != shape
        ],
    }
    if any(problems.values()):
        text = " and ".join(f"{what} {listing(names)}" for what, names in problems.items() if names)
        raise CheckpointError(
            f"{tensors.path} {text}; it is a part of a model, or of one that is not known here"
        )
    surplus = sorted(tensors.shapes.keys() - wanted.keys())
    if foreign := [name for name in surplus if INNER.search(name)]:
        raise CheckpointError(
            f"{tensors.path} has {listing(foreign)}, which this model does not: it is of another one, "
            "quantised, or an adapter; choose the plain weights"
        )
    if surplus:
        log.warning(f"{tensors.path} has tensors that this model does not use: {listing(surplus)}")


def _place(tensors: Tensors, name: str, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """A copy of its own, so that the model does not change when the file does."""
    source = tensors[name]
    if not source.is_floating_point() or source.layout != torch.strided:
        raise CheckpointError(
            f"{tensors.path}: {name} holds {source.dtype} and no plain weights; get a version that is not "
            "quantised"
        )
    placed = source.to(device=device or source.device, dtype=dtype, copy=True).contiguous()
    if not placed.is_meta and not _finite(placed):
        if dtype in (torch.float16, *EIGHT_BITS) and _finite(source):
            kind = str(dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{tensors.path}: {name} does not fit into {kind}; choose bfloat16 or float32"
            )
        raise CheckpointError(
            f"{tensors.path}: {name} holds values that are not numbers; download the file again"
        )
    return placed


def _finite(tensor: Tensor) -> bool:
    """One pass without a temporary: a NaN anywhere makes both extremes NaN."""
    if tensor.numel() == 0:
        return True
    values = tensor.float() if tensor.dtype in EIGHT_BITS else tensor
    return all(math.isfinite(extreme) for extreme in torch.stack(values.aminmax()).tolist())
