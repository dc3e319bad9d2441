"""Pictures: from tensors to PNG files that remember how they were made, and how alike two are (PSNR and
SSIM).

Images are (B, H, W, 3) in [0, 1], as ComfyUI passes them; one picture is compared with many by giving it a
batch of 1. Likeness is computed in float64 on the CPU, a picture at a time, so that neither device nor batch
changes the number.

Each picture carries its recipe as one JSON text chunk named "moss".  The names "prompt" and "workflow" stay
free: ComfyUI would try to open such a chunk as a graph.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import io
import json
import math
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

KEY = "moss"
NO_RECIPE = "holds no recipe; only pictures that `generate` wrote carry one"
INK, QUIET, PAPER = (28, 30, 36), (112, 116, 126), (255, 255, 255)  # text, side notes, background
_WINDOW, _SIGMA = 11, 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # (K L)^2 with values up to L = 1


def to_image(pictures: Tensor) -> Tensor:
    """Decoded pictures (B, 3, H, W) in [-1, 1] -> images (B, H, W, 3) in [0, 1] on the CPU, as ComfyUI passes
    them.
    """
    return ((pictures.float() + 1) / 2).movedim(1, -1).cpu()


def to_bytes(image: Tensor) -> Tensor:
    """Image in [0, 1] -> uint8, cut off, not rounded, as ComfyUI's Save Image; docs/infinity.md, section 7.2.
    """
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
            recipe = json.loads(getattr(image, "text", {})[KEY])
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # Pillow raises many kinds over damaged files
        raise ValueError(f"{path} {NO_RECIPE}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} {NO_RECIPE}")
    return recipe


def check_writable(path: Path | None) -> None:
    """Refuse a file that could not be written; None and "-" (standard output) are no file.

    Raises:
        ValueError: it is a folder, its name is none that the file system can hold, or its folder (or the
            nearest one above that exists) cannot be written to.
    """
    if path is None or str(path) == "-":
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # tells of names that are too long or not allowed here
        nearest = next(p for p in path.absolute().parents if p.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
        writable = not path.is_dir() and (not path.exists() or os.access(path, os.W_OK))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is not allowed"
        raise ValueError(
            f"{_shortened(path)} cannot be written ({reason}); name a file in another folder"
        ) from error
    if not writable:
        raise ValueError(f"{_shortened(path)} cannot be written; name a file in another folder")


def _shortened(path: Path) -> str:
    text = str(path)
    return text if len(text) < 200 else f"{text[:120]}...{text[-40:]}"


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files or, if something fails on the way, none; folders are made as needed and old files
    replaced.

    Raises:
        OSError: a file cannot be written.
    """
    # short names
    parts = {path: path.with_name(f".{os.getpid()}-{number}.part") for number, path in enumerate(files)}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path].write_bytes(data)
        if folder := next((path for path in files if path.is_dir()), None):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder))
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


# --- likeness -----------------------------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,) float64; infinite for equal pictures.

    Raises:
        ValueError: the pictures differ in size, or in number and neither is 1.
    """
    return torch.stack([10 * (1 / (x - y).square().mean()).log10() for x, y in _pairs(a, b)])


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, (B,) float64: 1 for equal pictures, about 0 for unrelated ones; it can be
    negative.

    After Wang et al. 2004: Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, only
        windows that lie
    inside the picture; the mean over places and over the colour channels.

    Raises:
        ValueError: as `psnr`, or the pictures are narrower or lower than 11 pixels.
    """
    return torch.stack([_ssim(x, y) for x, y in _pairs(a, b, _WINDOW)])


def _pairs(a: Tensor, b: Tensor, least: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures (H, W, 3) in float64, two by two, of at least that many pixels a side."""
    if a.dim() != 4 or a.shape[1:] != b.shape[1:] or (len(a) != len(b) and 1 not in (len(a), len(b))):
        raise ValueError(
            f"pictures of shape {tuple(a.shape)} cannot be compared with pictures of shape {tuple(b.shape)} "
            "(number, height, width, channels); give both the same size, and as many of the one as of the "
            "other or a single one"
        )
    if min(a.shape[1:3]) < least:
        raise ValueError(
            f"pictures need at least {least} x {least} pixels to be compared, got {a.shape[2]} x {a.shape[1]}"
        )
    for n in range(max(len(a), len(b))):
        yield tuple(images[n % len(images)].cpu().double() for images in (a, b))


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Of two pictures (H, W, 3)."""
    mean_a, mean_b, aa, bb, ab = map(_blur, (a, b, a * a, b * b, a * b))
    cov, var_a, var_b = ab - mean_a * mean_b, aa - mean_a * mean_a, bb - mean_b * mean_b
    light = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    return (light * (2 * cov + _C2) / (var_a + var_b + _C2)).mean()


def _blur(image: Tensor) -> Tensor:
    """Gaussian mean of every window that lies inside the picture, (H, W, 3) -> (H - 10, W - 10, 3)."""
    weights = [math.exp(-((n - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for n in range(_WINDOW)]
    for axis in (0, 1):
        places = image.shape[axis] - _WINDOW + 1
        total = torch.zeros_like(image.narrow(axis, 0, places))
        for n, weight in enumerate(weights):
            total.add_(image.narrow(axis, n, places), alpha=weight / sum(weights))
        image = total
    return image


# --- posters ------------------------------------------------------------------------------------------------


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).cpu().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return flat.view(1, image.height, image.width, 3) / 255


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its beginning as fits, ending in dots.  Pillow's own font knows plain Latin
    letters only.
    """
    text = " ".join(unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().split())
    if font.getlength(text) <= width:
        return text
    kept = bisect.bisect_right(range(len(text)), width, key=lambda n: font.getlength(text[:n] + "..."))
    return text[: max(kept - 1, 0)].rstrip() + "..."


def poster(
    panels: Sequence[Tensor],
    titles: Sequence[str],
    notes: Sequence[str] = (),
    footers: Sequence[Tensor | None] = (),
    heading: str = "",
    margin: float = 0.07,
) -> Tensor:
    """Panels side by side on white, ready to print.

    Args:
        panels: images (B, H, W, 3), all of the first one's size.
        titles: one a panel.
        notes: a quiet line under each title.
        footers: an image (1, h, W, 3) under each panel, such as a legend; None = nothing.
        heading: a line above all, cut where it does not fit; the prompt.
        margin: width of the border, as a part of a panel's width.

    Returns:
        (B, H', W', 3).
    """
    footers = list(footers) or [None] * len(panels)
    notes = list(notes) or [""] * len(panels)
    sheets = [
        _sheet([p[n] for p in panels], titles, notes, footers, heading, margin) for n in range(len(panels[0]))
    ]
    return torch.cat([from_pillow(sheet) for sheet in sheets])


def _sheet(
    panels: Sequence[Tensor],
    titles: Sequence[str],
    notes: Sequence[str],
    footers: Sequence[Tensor | None],
    heading: str,
    margin: float,
) -> Image.Image:
    height, width = panels[0].shape[:2]
    unit, border, gap = min(width, 1.4 * height), round(width * margin), round(width * 0.05)
    fonts = [ImageFont.load_default(unit * size) for size in (0.072, 0.058, 0.042)]
    top = border + round(unit * (0.13 if heading else 0))
    first = top + round(unit * (0.165 if any(notes) else 0.1))  # first row of the panels
    below = max((f.shape[1] + gap // 2 for f in footers if f is not None), default=0)
    whole = 2 * border + len(panels) * width + (len(panels) - 1) * gap
    sheet = Image.new("RGB", (whole, first + height + below + border), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((border, border), _fit(heading, fonts[0], whole - 2 * border), INK, fonts[0], "lt")
    for n, (panel, title, note, footer) in enumerate(zip(panels, titles, notes, footers, strict=True)):
        left = border + n * (width + gap)
        draw.text((left, top + unit * 0.055), _fit(title, fonts[1], width), INK, fonts[1], "ls")
        draw.text((left, top + unit * 0.125), _fit(note, fonts[2], width), QUIET, fonts[2], "ls")
        sheet.paste(to_pillow(panel), (left, first))
        if footer is not None:
            sheet.paste(to_pillow(footer[0]), (left, first + height + gap // 2))
    return sheet
