"""PNG files that remember how they were made.

Each picture carries its recipe as one JSON text chunk named "moss".  The names "prompt" and "workflow" stay free: ComfyUI
would try to open such a chunk as a graph.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

KEY = "moss"
_OPTIONS = (
    "model", "method", "bounds", "skip", "seed", "aspect", "pixels", "negative", "cfg", "tau", "strength", "window", "precision",
)  # fmt: skip


def to_image(pictures: Tensor) -> Tensor:
    """Decoded pictures (B, 3, H, W) in [-1, 1] -> images (B, H, W, 3) in [0, 1] on the CPU, as ComfyUI passes them."""
    return ((pictures.float() + 1) / 2).movedim(1, -1).cpu()


def to_bytes(image: Tensor) -> Tensor:
    """Image in [0, 1] -> uint8, cut off, not rounded: so do Infinity's own code (specification 7.2) and ComfyUI's Save Image."""
    return (255 * image).clamp(0, 255).to(torch.uint8)


def png(image: Tensor, recipe: Mapping[str, Any] | None = None) -> bytes:
    """An image (H, W, 3) in [0, 1] as a PNG file, with its recipe if given."""
    chunks = PngImagePlugin.PngInfo()
    if recipe:
        chunks.add_itxt(KEY, json.dumps(recipe, ensure_ascii=False))
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image).numpy()).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe inside a PNG that `generate` wrote.

    Raises:
        ValueError: not a PNG, or one without a recipe.
        OSError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.load()  # text may stand behind the pixels
            return json.loads(getattr(image, "text", {})[KEY])
    except (KeyError, json.JSONDecodeError, UnidentifiedImageError):
        raise ValueError(f"{path} holds no recipe; only pictures that `generate` wrote carry one") from None


def arguments(recipe: Mapping[str, Any]) -> list[str]:
    """The command line that draws the recipe again: `cli.main(arguments(read_recipe(path)))`.

    The model is stored by name, without its folder; where that does not find it, set recipe["model"] to its place.
    """
    options = [f"--{name}={_typed(recipe[name])}" for name in _OPTIONS if recipe[name] is not None]
    switches = ["--no-cssa"] * (not recipe["cssa"]) + ["--no-refine-guidance"] * (not recipe["refine_guidance"])
    return ["generate", *options, *switches, "--", recipe["prompt"]]


def _typed(value: str | float | Sequence[float]) -> str:
    """A value as it is typed on the command line, with all its digits."""
    return value if isinstance(value, str) else ",".join(map(repr, value)) if isinstance(value, Sequence) else repr(value)


def check_writable(path: Path | None) -> None:
    """Refuse a file that could not be written; None and "-" (standard output) are no file.

    Raises:
        ValueError: it is a folder, or the nearest folder above that exists cannot be written to.
    """
    if path is None or str(path) == "-":
        return
    nearest = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir() or not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ValueError(f"{path} cannot be written; name a file in another folder")


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files or, if something fails on the way, none; folders are made as needed and old files replaced.

    Raises:
        OSError: a file cannot be written.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path].write_bytes(data)
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
