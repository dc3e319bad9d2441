"""LoRAs: low-rank changes of a transformer's matrices, read from files of every scheme in use.

PEFT writes `base_model.model.<layer>.lora_A.weight`, kohya `lora_unet_<layer, underscored>.lora_down.weight`
with an alpha, EditInfinity `<layer>.lora_down.weight` or bare `<layer>.lora_A`; layers are named as in the
released files, whose blocks lie in chunks, or numbered through.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .tensors import CheckpointError, open_tensors

PART = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up|alpha)(?:\.default)?(?P<weight>\.weight)?"
)
DOWN, UP = ("lora_A", "lora_down"), ("lora_B", "lora_up")
PREFIXES = (
    "base_model.model.", "diffusion_model.", "transformer.", "infinity.", "model.", "module.", "lora_unet_",
)
CHUNKED = re.compile(r"block_chunks[._](\d+)[._]module[._](\d+)[._](.+)")
ELSEWHERE = re.compile(r"(?:lora_te|text_encoder|text_model|te\d?[._]|vae|first_stage|autoencoder)")
OTHERS = {"hada_": "a LoHa", "lokr_": "a LoKr", "dora_scale": "a DoRA", "lora_magnitude": "a DoRA"}
CHUNKS = {12: 4}  # depth -> chunks of the blocks of released models, where they are not 8
EDIT_ALPHA = 16.0  # of EditInfinity's own layer, whose file does not say it


class LowRank(NamedTuple):
    """The change of a matrix (out, in): scale * up (out, r) @ down (r, in)."""

    down: Tensor
    up: Tensor
    scale: float

    def delta(self) -> Tensor:
        """(out, in) float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class Lora:
    """A file of changes, matched to a model.

    Attributes:
        changes: by name of a parameter.
        sha: short hash of the file's values.
        ignored: layers of text encoder or codec, which stay as they are.
    """

    name: str
    changes: Mapping[str, LowRank]
    sha: str
    ignored: int = 0


def read_lora(path: Path, shapes: Mapping[str, Iterable[int]]) -> Lora:
    """A LoRA from a file, for a transformer with these parameters, by name.

    Raises:
        CheckpointError: damaged, of another kind, or for another model.
    """
    tensors = open_tensors(path, wrapped=False)
    _refuse_others(path, tensors)
    found, ignored = {}, set()
    for key in tensors:
        if part := PART.fullmatch(key):
            if ELSEWHERE.match(key.removeprefix("base_model.model.")):
                ignored.add(part["layer"])
            else:
                found.setdefault(part["layer"], {})[part["part"]] = (tensors[key], bool(part["weight"]))
    names = _names(path, found, shapes)
    if not names:
        seen = next(iter(found or tensors), "nothing")
        told = "it changes text encoder or codec alone" if ignored else f"its names look like {seen[:60]!r}"
        raise CheckpointError(f"{path.name} holds no LoRA for this model: {told}; choose one made for it")
    alpha = _peft_alpha(path)
    changes = {
        name: _low_rank(path, layer, found[layer], tuple(shapes[name]), alpha)
        for layer, name in names.items()
    }
    return Lora(path.stem, changes, _sha(changes), len(ignored))


def _refuse_others(path: Path, keys: Iterable[str]) -> None:
    for key in keys:
        if kind := next((kind for sign, kind in OTHERS.items() if sign in key), None):
            raise CheckpointError(f"{path.name} is {kind}, which is not known here; choose a plain LoRA")


def _names(path: Path, layers: Iterable[str], shapes: Mapping[str, Iterable[int]]) -> dict[str, str]:
    """Layers of the file -> parameters of the model; those that are in neither scheme are left out.

    Raises:
        CheckpointError: blocks in chunks that do not make up this model's.
    """
    known = {}
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(tuple(shape)) == 2:
            layer = name.removesuffix(".weight")
            known |= {layer: name, layer.replace(".", "_"): name}
    plain = {layer: _plain(layer) for layer in layers}
    chunks = [CHUNKED.fullmatch(layer) for layer in plain.values()]
    size = _chunk_size(path, [(int(c[1]), int(c[2])) for c in chunks if c], shapes)
    numbered = {
        layer: f"blocks.{int(c[1]) * size + int(c[2])}.{c[3]}" if c else name
        for (layer, name), c in zip(plain.items(), chunks, strict=True)
    }
    found = {layer: known.get(name, known.get(name.replace(".", "_"))) for layer, name in numbered.items()}
    return {layer: name for layer, name in found.items() if name}


def _plain(layer: str) -> str:
    """Without what a trainer put before the model's own name."""
    while prefix := next((prefix for prefix in PREFIXES if layer.startswith(prefix)), None):
        layer = layer.removeprefix(prefix)
    return layer


def _chunk_size(path: Path, places: list[tuple[int, int]], shapes: Mapping[str, Iterable[int]]) -> int:
    """Blocks of a chunk: all chunks are of one size and make up the model's depth.  A file that leaves blocks
    out is taken for one of a model in as many chunks as released ones have.
    """
    if not places:
        return 0
    depth = 1 + max(int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name)))
    chunks, size = (1 + max(numbers) for numbers in zip(*places, strict=True))
    usual = CHUNKS.get(depth, 8)
    if depth % usual == 0 and chunks <= usual and size <= depth // usual:
        return depth // usual
    if chunks * size != depth:
        raise CheckpointError(
            f"{path.name} changes {chunks} chunks of {size} blocks and this model has {depth} blocks; choose "
            "a LoRA made for it"
        )
    return size


def _low_rank(
    path: Path, layer: str, parts: Mapping[str, tuple[Tensor, bool]], shape: tuple[int, ...],
    peft_alpha: float | None,
) -> LowRank:
    """One matrix's change.

    Raises:
        CheckpointError: a half is missing, or its sizes are not the model's.
    """
    down, up = (next((parts[name] for name in names if name in parts), None) for names in (DOWN, UP))
    if down is None or up is None:
        raise CheckpointError(f"{path.name} lacks a half of the change of {layer}; get the whole file")
    (down, named), (up, _) = down, up
    rank = down.shape[0]
    if down.dim() != 2 or up.dim() != 2 or (up.shape[0], down.shape[1]) != shape or up.shape[1] != rank:
        sizes = f"{up.shape[0]} x {down.shape[-1]}"
        raise CheckpointError(
            f"{path.name} changes {layer} of {sizes} numbers and this model's is {shape[0]} x {shape[1]}: it "
            "was made for a model of another size"
        )
    told = parts["alpha"][0].item() if "alpha" in parts else None
    if told is None and "lora_A" in parts:
        told = peft_alpha if named else EDIT_ALPHA
    return LowRank(down, up, 1.0 if told is None else told / rank)


def _peft_alpha(path: Path) -> float | None:
    """What PEFT wrote beside the file; None = nothing."""
    try:
        told: dict[str, Any] = json.loads((path.parent / "adapter_config.json").read_text(encoding="utf-8"))
        alpha, rank = float(told["lora_alpha"]), float(told["r"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return alpha * math.sqrt(rank) if told.get("use_rslora") else alpha


def _sha(changes: Mapping[str, LowRank]) -> str:
    digest = hashlib.sha256()
    for name, change in sorted(changes.items()):
        digest.update(f"{name} {change.scale}".encode())
        for half in (change.down, change.up):
            digest.update(half.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def shapes_of(backbone: Any) -> dict[str, tuple[int, ...]]:
    """Of the transformer's parameters, by name."""
    return {name: tuple(p.shape) for name, p in backbone.transformer.named_parameters()}


def changed_id(model_id: str, loras: Iterable[tuple[Lora, float]]) -> str:
    """What names the weights of a model with these LoRAs, each with its strength."""
    return "+".join([model_id, *(f"{lora.sha}:{strength:g}" for lora, strength in loras)])


@torch.no_grad()
def merged(backbone: Any, loras: Iterable[tuple[Lora, float]]) -> Any:
    """A backbone whose transformer's weights are changed in place, for good.

    Raises:
        CheckpointError: weights in 8 bits, which cannot be changed so.
    """
    loras, parameters = list(loras), dict(backbone.transformer.named_parameters())
    for lora, strength in loras:
        for name, change in lora.changes.items():
            add(parameters[name], strength * change.delta(), lora.name)
    return replace(backbone, model_id=changed_id(backbone.model_id, loras))


def add(weight: nn.Parameter, delta: Tensor, name: str) -> None:
    if weight.element_size() < 2 or not weight.is_floating_point():
        raise CheckpointError(f"{name} cannot be added to weights in 8 bits; load the model in bf16 or fp32")
    weight.copy_(weight.float() + delta.to(weight.device))
