"""Weights in 8 bits, in ComfyUI's formats: fp8 (e4m3) with a scale a matrix, int8 with a scale a row of it.

Beside `X.weight` a file holds `X.weight_scale`, a factor on it, and `X.comfy_quant`, JSON that names the
format; older files hold `X.scale_weight` and one tensor `scaled_fp8`.  ComfyUI's own layers read such weights
as they are stored; plain torch gets them multiplied out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .tensors import CheckpointError, Tensors, reading

FORMATS = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}
TYPES = {
    torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2", torch.int8: "int8_tensorwise",
}
MARK, SCALE, OLD_SCALE, OLD_MARK = ".comfy_quant", ".weight_scale", ".scale_weight", "scaled_fp8"
BESIDE = (MARK, SCALE, OLD_SCALE, ".input_scale", ".scale_input")
BLOCK = re.compile(r"(?:block_chunks\.\d+\.module|blocks)\.\d+\..+\.weight")


def quantized_layers(tensors: Tensors) -> dict[str, str]:
    """Layers whose weights are stored in 8 bits -> the names of their scales: one number, or one a row.

    Raises:
        CheckpointError: one is in a format that is not known here.
    """
    found = {}
    for name in tensors:
        layer = next((name.removesuffix(end) for end in (SCALE, OLD_SCALE) if name.endswith(end)), "")
        count, rows = math.prod(tensors.shapes[name]), tensors.shapes.get(f"{layer}.weight", ())[:1]
        if layer and rows and count in (1, *rows):
            _check_format(tensors, layer)
            found[layer] = name
    return found


def _check_format(tensors: Tensors, layer: str) -> None:
    if layer + MARK not in tensors:
        return
    with reading(tensors.path):
        told: dict[str, Any] = dict(json.loads(bytes(tensors[layer + MARK].tolist())))
    if told.get("format") not in TYPES.values() or told.get("convrot"):
        kind = "int8, rotated," if told.get("convrot") else f"{told.get('format')}"[:40]
        raise CheckpointError(
            f"{tensors.path}: {layer} is stored as {kind}, which this pack cannot read; get a version in fp8 "
            "or int8, or the plain weights"
        )


def dequantized(tensors: Tensors) -> Tensors:
    """The tensors with all weights multiplied out, in float32, and without what stands beside them."""
    scales = {f"{layer}.weight": scale for layer, scale in quantized_layers(tensors).items()}
    if not scales:
        return tensors
    shapes = {n: shape for n, shape in tensors.shapes.items() if not n.endswith((*BESIDE, OLD_MARK))}

    def read(name: str) -> Tensor:
        value = tensors[name]
        return value if name not in scales else value.float() * _column(tensors[scales[name]])

    return Tensors(tensors.path, shapes, read, tensors.files, tensors.metadata)


def _column(scale: Tensor) -> Tensor:
    """A scale for the whole matrix, or one for each of its rows."""
    return scale.float().reshape(-1, 1) if scale.numel() > 1 else scale.float().reshape(())


def as_stored(tensors: Tensors) -> dict[str, Tensor]:
    """Weights in 8 bits and what stands beside them, under the names that ComfyUI's layers load."""
    state = {}
    for layer, scale in quantized_layers(tensors).items():
        weight = tensors[f"{layer}.weight"]
        if weight.dtype not in TYPES:
            continue  # multiplied out as everywhere
        mark = tensors[layer + MARK] if layer + MARK in tensors else _mark(TYPES[weight.dtype])
        state |= {
            f"{layer}.weight": weight.clone(), layer + MARK: mark.clone(),
            layer + SCALE: tensors[scale].float().clone(),
        }
    return state


def _mark(format: str, **more: Any) -> Tensor:
    return torch.tensor(list(json.dumps({"format": format} | more).encode()), dtype=torch.uint8)


def quantized(tensors: Tensors, kind: str, keep: Sequence[str] = ()) -> Tensors:
    """The tensors with the blocks' matrices in 8 bits, computed when asked for (docs/precision.md says what
    each costs); what is around the blocks, and vectors, stay as they are.

    Args:
        kind: a key of FORMATS.
        keep: ends of the names of layers that stay as they are, such as "ffn.fc2".

    Raises:
        CheckpointError: there are no blocks, they are in 8 bits already, or `keep` names no layer.
    """
    matrices = [n for n, shape in tensors.shapes.items() if BLOCK.fullmatch(n) and len(shape) == 2]
    if unknown := [end for end in keep if not any(name.endswith(f".{end}.weight") for name in matrices)]:
        raise CheckpointError(f"{tensors.path} has no layer {unknown[0][:40]!r} to keep in its blocks")
    stays = tuple(f".{end}.weight" for end in keep)
    layers = [name.removesuffix(".weight") for name in matrices if not name.endswith(stays)]
    if not layers or quantized_layers(tensors):
        found = "is stored in 8 bits already" if layers else "holds no blocks of a transformer"
        raise CheckpointError(f"{tensors.path} {found}; --{kind} is for a transformer's plain weights")
    beside = {layer + end: layer for layer in layers for end in (MARK, SCALE)}
    mark = _mark(FORMATS[kind], **{"full_precision_matrix_mult": True} if kind == "fp8" else {})
    shapes = dict(tensors.shapes)
    for layer in layers:
        rows = shapes[f"{layer}.weight"][0]
        shapes |= {layer + MARK: tuple(mark.shape), layer + SCALE: () if kind == "fp8" else (rows, 1)}
    packed = {f"{layer}.weight" for layer in layers}

    def read(name: str) -> Tensor:
        if name in packed:
            return pack(tensors[name], kind)[0]
        if name in beside:
            return mark if name.endswith(MARK) else pack(tensors[f"{beside[name]}.weight"], kind)[1]
        return tensors[name]

    return Tensors(tensors.path, shapes, read, tensors.files, tensors.metadata)


def pack(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """A matrix (N, K) in 8 bits and its scale: () for fp8, (N, 1) for int8."""
    weight = weight.float()
    if kind == "fp8":
        scale = weight.abs().amax().clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
        return (weight / scale).to(torch.float8_e4m3fn), scale
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def unpack(packed: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `pack`, up to rounding: float32."""
    return packed.float() * _column(scale)
