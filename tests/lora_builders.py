"""Synthetic LoRA files in every scheme of names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS = ("blocks.0.sa.mat_qkv", "blocks.1.ffn.fc2", "blocks.1.ca.proj", "word_embed")
RANK, ALPHA = 3, 6.0

Halves = dict[str, tuple[Tensor, Tensor]]


def halves(shapes: dict[str, tuple[int, ...]], layers: Iterable[str] = LAYERS, size: float = 0.3) -> Halves:
    """Random (down, up) of layers."""
    chance = torch.Generator().manual_seed(5)
    sizes = {layer: shapes[f"{layer}.weight"] for layer in layers}
    return {
        layer: (
            size * torch.randn(RANK, inputs, generator=chance),
            size * torch.randn(outputs, RANK, generator=chance),
        )
        for layer, (outputs, inputs) in sizes.items()
    }


def chunked(layer: str, size: int = 1) -> str:
    """As released files name it."""
    if not layer.startswith("blocks."):
        return layer
    _, number, rest = layer.split(".", 2)
    return f"block_chunks.{int(number) // size}.module.{int(number) % size}.{rest}"


def peft(path: Path, pairs: Halves, adapter: str = "", whole: bool = False) -> float:
    """With its alpha beside; returns the scale.  whole: of a model whose blocks are numbered through."""
    state = {}
    for layer, (down, up) in pairs.items():
        stem = f"base_model.model.{layer if whole else chunked(layer)}"
        state |= {f"{stem}.lora_A{adapter}.weight": down, f"{stem}.lora_B{adapter}.weight": up}
    save_file(state, path)
    (path.parent / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
    return ALPHA / RANK


def kohya(path: Path, pairs: Halves) -> float:
    state = {}
    for layer, (down, up) in pairs.items():
        stem = f"lora_unet_{layer.replace('.', '_')}"
        state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        state[f"{stem}.alpha"] = torch.tensor(ALPHA)
    save_file(state, path)
    return ALPHA / RANK


def kohya_chunked(path: Path, pairs: Halves) -> float:
    return kohya(path, {chunked(layer): pair for layer, pair in pairs.items()})


def edit_infinity(path: Path, pairs: Halves) -> float:
    """As its injected layers are called, and stored by torch."""
    state = {}
    for layer, (down, up) in pairs.items():
        state |= {f"{chunked(layer, 2)}.lora_down.weight": down, f"{chunked(layer, 2)}.lora_up.weight": up}
    save_file(state, path)
    return 1.0


def edit_infinity_bare(path: Path, pairs: Halves) -> float:
    """As its own layer names them, whose alpha is 16."""
    state = {}
    for layer, (down, up) in pairs.items():
        state |= {f"{layer}.lora_A": down, f"{layer}.lora_B": up}
    save_file(state, path)
    return 16 / RANK


SCHEMES: dict[str, Callable[[Path, Halves], float]] = {
    "peft": peft, "peft, named": lambda path, pairs: peft(path, pairs, ".default"), "kohya": kohya,
    "kohya, chunks": kohya_chunked, "EditInfinity": edit_infinity, "EditInfinity, bare": edit_infinity_bare,
}
