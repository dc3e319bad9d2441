"""GGUF files: tensors that the package `gguf` reads, multiplied out when asked for.

GGUF numbers axes from the last one and drops leading axes of length 1, so parameters that have such get them
back by their names.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .tensors import CheckpointError, Tensors, reading

AXES = {"pos_start": 3, "mat_q": 3, "ada_gss": 4}  # last part of a parameter's name -> its axes


def open_gguf(path: Path) -> Tensors:
    """Open a GGUF file, of Q8_0 or any other type that the package can multiply out.

    Raises:
        CheckpointError: the package is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            f"{path} is a GGUF file; reading those needs the Python package gguf: pip install gguf"
        ) from error
    with reading(path, "is a GGUF file that is damaged or was not fully downloaded; download it again"):
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if not found:
        raise CheckpointError(f"{path} is a GGUF file without weights; choose the model's weights file")

    def read(name: str) -> Tensor:
        values = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        return torch.from_numpy(values.copy())

    shapes = {name: _shape(name, [int(n) for n in reversed(one.shape)]) for name, one in found.items()}
    return Tensors(path, shapes, read, [path])


def _shape(name: str, axes: list[int]) -> tuple[int, ...]:
    last = name.rpartition(".")[2]
    if last == "scale_mul_1H11":
        return (1, max(axes), 1, 1)
    return (1,) * (AXES.get(last, 0) - len(axes)) + tuple(axes)
