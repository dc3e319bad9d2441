"""Pictures that explain the method: where the draft is busy, and which scale redraws which place.

Images are (B, H, W, 3) float32 in [0, 1], sRGB, as ComfyUI passes them.  Colours can be told apart with any colour vision.
"""

from __future__ import annotations

import bisect
import math
import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..model.schedule import Grid, Schedule
from .dispatch import Dispatch

# Nine even steps of "magma" (Smith and van der Walt, public domain): perceptually even, readable in grey as well.
_MAGMA = "000004 1d1147 51127c 822681 b63679 e65164 fb8861 fec287 fcfdbf"
# Okabe and Ito's palette, finest refine scale first, so that the finest scale keeps its colour whatever k is.
_OKABE_ITO = "d55e00 f0e442 009e73 56b4e9 0072b2 cc79a7 e69f00"
_READABLE = 512  # pixels of the shorter side from which tokens can be told apart
_LINE = 0.45  # how far the outline of a token is lightened
_INK, _QUIET, _PAPER = (28, 30, 36), (112, 116, 126), (255, 255, 255)  # text, side notes, background


def _colours(table: str) -> Tensor:
    return torch.tensor([list(bytes.fromhex(code)) for code in table.split()]) / 255


def scale_colours(k: int) -> Tensor:
    """(k, 3) colours of the refine scales, coarsest first; from the eighth on they repeat."""
    palette = _colours(_OKABE_ITO)
    return torch.stack([palette[n % len(palette)] for n in reversed(range(k))])


def colour_map(values: Tensor) -> Tensor:
    """Values in [0, 1] of any shape -> colours (..., 3), from near black over purple to pale yellow."""
    table = _colours(_MAGMA).to(values.device)
    place = values.clamp(0, 1) * (len(table) - 1)
    low = place.floor().long().clamp_max(len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[..., None])


def percentile(frequency: Tensor) -> Tensor:
    """Share of the same picture's places that are calmer, in [0, 1]; equals count half.

    Args:
        frequency: (B, h, w).
    """
    flat = frequency.flatten(1).contiguous()
    ordered = flat.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    return ((below + upto) / (2 * flat.shape[1])).view_as(frequency)


def _nearest(cells: Tensor, size: Grid) -> Tensor:
    """(B, h, w) -> (B, H, W): every pixel takes the cell that its centre lies in."""
    rows, cols = (
        (2 * torch.arange(pixels, device=cells.device) + 1) * count // (2 * pixels)
        for pixels, count in zip(size, cells.shape[1:], strict=True)
    )
    return cells[:, rows][:, :, cols]


def heatmap(frequency: Tensor, size: Grid) -> Tensor:
    """The frequency map in colour.  A place's colour is its percentile, the quantity that the bounds cut.

    Args:
        frequency: (B, h, w), >= 0.
        size: height and width in pixels; cells are enlarged without smoothing, so that each can be read.

    Returns:
        (B, H, W, 3).
    """
    return colour_map(_nearest(percentile(frequency), size))


def enlarge(image: Tensor, size: Grid) -> Tensor:
    """(B, h, w, 3) -> (B, H, W, 3), smooth."""
    if tuple(image.shape[1:3]) == tuple(size):
        return image
    moved = F.interpolate(image.movedim(-1, 1), size=tuple(size), mode="bicubic", antialias=True)
    return moved.clamp(0, 1).movedim(1, -1)


def _outline(filled: Tensor, grid: Grid) -> Tensor:
    """Pixels on the lines around filled cells; filled (B, H, W) bool."""
    lines = torch.zeros_like(filled)
    for axis, count in ((1, grid[0]), (2, grid[1])):
        pixels = filled.shape[axis]
        cell = (2 * torch.arange(-1, pixels, device=filled.device) + 1) * count // (2 * pixels)
        first = (cell.diff() > 0).index_fill(0, torch.tensor(0, device=filled.device), True)
        before = filled.roll(1, axis).index_fill(axis, torch.tensor(0, device=filled.device), False)
        lines |= first.view((-1, 1) if axis == 1 else (1, -1)) & (filled | before)
    return lines


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).cpu().numpy())


def _from_pillow(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return flat.view(1, image.height, image.width, 3) / 255


def overlay(image: Tensor, dispatch: Dispatch, schedule: Schedule) -> Tensor:
    """Which scale redraws which token, over the picture: one colour a scale, finest on top, the rest dimmed and grey.

    Args:
        image: (B, H, W, 3), the picture beneath.

    Returns:
        (B, H, W, 3).
    """
    size = tuple(image.shape[1:3])
    grey = (image @ image.new_tensor([0.2126, 0.7152, 0.0722]))[..., None].expand_as(image)
    canvas = 0.10 + 0.38 * grey
    for scale, cells, colour in zip(dispatch.scales, dispatch.cells, scale_colours(len(dispatch.scales)), strict=True):
        h, w = schedule.grids[scale]
        chosen = torch.zeros(len(image), h * w, dtype=torch.bool, device=image.device)
        chosen = chosen.scatter(1, cells.to(image.device), True).view(-1, h, w)
        filled, colour = _nearest(chosen, size), colour.to(image)
        canvas = torch.where(filled[..., None], colour * (0.5 + 0.5 * grey), canvas)
        canvas = torch.where(_outline(filled, (h, w))[..., None], torch.lerp(colour, torch.ones_like(colour), _LINE), canvas)
    return canvas


def legend(dispatch: Dispatch, schedule: Schedule, width: int) -> Tensor:
    """What the overlay's colours mean: a row a refine scale, finest first, with its grid (width x height), tokens, share.

    Args:
        width: in pixels.  The height follows from it and the number of scales.

    Returns:
        (1, H, width, 3).
    """
    rows = []
    for scale, count, colour in zip(dispatch.scales, dispatch.counts, scale_colours(len(dispatch.scales)), strict=True):
        h, w = schedule.grids[scale]
        rows.append((colour, f"{w} x {h}", f"{count} tokens", f"{100 * count / (h * w):.0f} %"))
    rest = max(0.0, 1 - sum(n / math.prod(schedule.grids[s]) for s, n in zip(dispatch.scales, dispatch.counts, strict=True)))
    rows.append((torch.full((3,), 0.45), "as drafted", "", f"{100 * rest:.0f} %"))
    step, font = round(width * 0.062), ImageFont.load_default(width * 0.042)
    sheet = Image.new("RGB", (width, step * len(rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for n, (colour, grid, tokens, share) in enumerate([*reversed(rows[:-1]), rows[-1]]):
        middle, half = (n + 0.5) * step, 0.36 * step
        fill = tuple(round(255 * c) for c in colour.tolist())
        draw.rectangle((0, middle - half, 2 * half, middle + half), fill)
        for place, anchor, ink, text in ((0.075, "lm", _INK, grid), (0.68, "rm", _QUIET, tokens), (1, "rm", _QUIET, share)):
            draw.text((place * (width - 1), middle), text, ink, font, anchor)
    return _from_pillow(sheet)


def colour_bar(width: int) -> Tensor:
    """The heatmap's colours from calm to busy, with the percentiles that the bounds refer to; (1, H, width, 3)."""
    bar, font = round(width * 0.04), ImageFont.load_default(width * 0.042)
    sheet = Image.new("RGB", (width, round(width * 0.124)), _PAPER)
    ramp = colour_map(torch.linspace(0, 1, width)).expand(bar, -1, -1)
    sheet.paste(_to_pillow(ramp), (0, round(width * 0.012)))
    draw, line = ImageDraw.Draw(sheet), width * 0.093
    for place, anchor, text in ((0, "lm", "calmest"), (0.5, "mm", "top 50 %"), (1, "rm", "busiest")):
        draw.text((place * (width - 1), line), text, _QUIET, font, anchor)
    return _from_pillow(sheet)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its beginning as fits, ending in dots.  Pillow's own font knows plain Latin letters only."""
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
    sheets = [_sheet([p[n] for p in panels], titles, notes, footers, heading, margin) for n in range(len(panels[0]))]
    return torch.cat([_from_pillow(sheet) for sheet in sheets])


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
    sheet = Image.new("RGB", (whole, first + height + below + border), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((border, border), _fit(heading, fonts[0], whole - 2 * border), _INK, fonts[0], "lt")
    for n, (panel, title, note, footer) in enumerate(zip(panels, titles, notes, footers, strict=True)):
        left = border + n * (width + gap)
        draw.text((left, top + unit * 0.055), _fit(title, fonts[1], width), _INK, fonts[1], "ls")
        draw.text((left, top + unit * 0.125), _fit(note, fonts[2], width), _QUIET, fonts[2], "ls")
        sheet.paste(_to_pillow(panel), (left, first))
        if footer is not None:
            sheet.paste(_to_pillow(footer[0]), (left, first + height + gap // 2))
    return sheet


def explain(
    draft: Tensor,
    result: Tensor,
    frequency: Tensor,
    dispatch: Dispatch,
    schedule: Schedule,
    heading: str = "",
    notes: Sequence[str] = ("", ""),
) -> dict[str, Tensor]:
    """The pictures that show how a picture came about.

    Args:
        draft, result: images (B, H, W, 3).
        frequency: (B, h, w).
        notes: quiet lines under the titles of draft and result.

    Returns:
        Images "frequency", "dispatch" and "poster"; small pictures are enlarged so that tokens can be told apart.
    """
    height, width = draft.shape[1:3]
    times = math.ceil(_READABLE / min(height, width))
    size = (height * times, width * times)
    large = enlarge(result, size)
    heat, shares = heatmap(frequency.to(result.device), size), overlay(large, dispatch, schedule)
    grids = ("local variance of the draft's codes", f"{sum(dispatch.counts)} tokens, refined in one pass")
    page = poster(
        [enlarge(draft, size), heat, shares, large],
        ["Draft", "Frequency", "Dispatch", "Result"],
        [notes[0], *grids, notes[1]],
        [None, colour_bar(size[1]), legend(dispatch, schedule, size[1]), None],
        heading,
    )
    return {"frequency": heat, "dispatch": shares, "poster": page}
