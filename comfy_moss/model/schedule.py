"""Scale schedules of Infinity: which token grids are drawn, coarse to fine, for every ratio and image area.

One table, one owner.  Facts: docs/infinity.md, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from .. import typed

if TYPE_CHECKING:  # the command line reads the table before it needs torch, which is slow to import
    import torch
    from torch import Tensor

Grid = tuple[int, int]  # (rows, columns) of a token grid

# Ratio h/w -> 13 grids.  The portrait half; landscape grids are their transposes.
_PORTRAIT = {
    1.0: "1,1 2,2 4,4 6,6 8,8 12,12 16,16 20,20 24,24 32,32 40,40 48,48 64,64",
    1.25: "1,1 2,2 3,3 5,4 10,8 15,12 20,16 25,20 30,24 35,28 45,36 55,44 70,56",
    1.333: "1,1 2,2 4,3 8,6 12,9 16,12 20,15 24,18 28,21 36,27 48,36 60,45 72,54",
    1.5: "1,1 2,2 3,2 6,4 9,6 15,10 21,14 27,18 33,22 39,26 48,32 63,42 78,52",
    1.75: "1,1 2,2 3,3 7,4 11,6 14,8 21,12 28,16 35,20 42,24 56,32 70,40 84,48",
    2.0: "1,1 2,2 4,2 6,3 10,5 16,8 22,11 30,15 38,19 46,23 60,30 74,37 90,45",
    2.5: "1,1 2,2 5,2 10,4 15,6 20,8 25,10 30,12 40,16 50,20 65,26 80,32 100,40",
    3.0: "1,1 2,2 6,2 9,3 15,5 21,7 27,9 36,12 45,15 54,18 72,24 90,30 111,37",
}
PRESETS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # image area at stride 16 -> number of scales


def _parse(text: str) -> tuple[Grid, ...]:
    return tuple((int(h), int(w)) for h, w in (pair.split(",") for pair in text.split()))


def _ratio_table() -> dict[float, tuple[Grid, ...]]:
    """All 15 ratios in the order that decides ties: 1.0, then each portrait ratio and its transpose."""
    table = {}
    for ratio, text in _PORTRAIT.items():
        grids = _parse(text)
        table[ratio] = grids
        if ratio != 1.0:
            table[int(1000 / ratio) / 1000] = tuple((w, h) for h, w in grids)
    return table


RATIOS = _ratio_table()


@dataclass(frozen=True)
class Schedule:
    """The scales of one image.

    Attributes:
        ratio: key h/w of the aspect-ratio table, e.g. 1.333.
        grids: S token grids (rows, columns), coarsest first.
        rope_grid: last grid of the ratio's 1M schedule; positions of every scale are measured on it.
    """

    ratio: float
    grids: tuple[Grid, ...]
    rope_grid: Grid

    def __len__(self) -> int:
        return len(self.grids)

    def tokens(self, first: int = 0, last: int | None = None) -> int:
        """Number of tokens of the scales first..last-1 (default: all)."""
        return sum(h * w for h, w in self.grids[first:last])


def nearest_ratio(height_over_width: float) -> float:
    """The table's ratio with the smallest |ratio - h/w| (linear; ties go to the earlier entry)."""
    return min(RATIOS, key=lambda ratio: abs(ratio - height_over_width))


def parse_aspect(text: str) -> float:
    """An aspect ratio as artists write it, width first ("16:9", "3x2", "1920 x 1080"), as h/w.

    Raises:
        ValueError: not a ratio, or outside 1:4 .. 4:1.
    """
    width, height = typed.sides(text)
    if not (width > 0 and 0.25 <= height / width <= 4):
        raise ValueError(
            f"aspect {typed.quoted(text)} is too extreme; widths and heights may differ by at most 4 to 1"
        )
    return height / width


def make_schedule(height_over_width: float = 1.0, preset: str = "1M") -> Schedule:
    """Scale schedule for the table ratio nearest to h/w.

    Args:
        height_over_width: wanted h/w, > 0.
        preset: "0.06M", "0.25M", "0.60M" or "1M": the first 7, 10, 12 or 13 scales.

    Raises:
        ValueError: unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"image area {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    ratio = nearest_ratio(height_over_width)
    grids = RATIOS[ratio]
    return Schedule(ratio, grids[: PRESETS[preset]], grids[-1])


def square_schedule(sides: Sequence[int]) -> Schedule:
    """The scales of a model that draws squares of one size only; sides in tokens, coarsest first."""
    grids = tuple((side, side) for side in sides)
    return Schedule(1.0, grids, grids[-1])


@dataclass(frozen=True)
class Positions:
    """Where each of N tokens lies: a dense step lists one scale, a refine step parts of several.

    Attributes:
        scale: (B, N) int64 index into the schedule, 0 = coarsest.
        row, col: (B, N) int64, in cells of that scale's own grid.
        runs: (scale, number of tokens) of the sequence in order, the same for every picture, so that nobody
            has to ask the device; () = not known.
        place: where the tokens stand among all of the schedule, scale after scale in raster order: a slice,
            or (B, N) int64; None = not known.
    B may be 1 for "the same in every row of the batch".
    """

    scale: Tensor
    row: Tensor
    col: Tensor
    runs: tuple[tuple[int, int], ...] = ()
    place: slice | Tensor | None = None

    @classmethod
    def of_scale(cls, schedule: Schedule, scale: int, device: torch.device | str = "cpu") -> Positions:
        """All tokens of one scale in raster order, (1, h*w)."""
        import torch

        h, w = schedule.grids[scale]
        cell, start = torch.arange(h * w, device=device)[None], schedule.tokens(0, scale)
        runs, place = ((scale, h * w),), slice(start, start + h * w)
        return cls(torch.full_like(cell, scale), cell // w, cell % w, runs, place)

    @classmethod
    def of_all(cls, schedule: Schedule, device: torch.device | str = "cpu") -> Positions:
        """All tokens of all scales, (1, T)."""
        return cls.concat([cls.of_scale(schedule, scale, device) for scale in range(len(schedule))])

    @classmethod
    def of_cells(cls, schedule: Schedule, scale: int, cells: Tensor) -> Positions:
        """Chosen tokens of one scale; cells (B, N) are raster indices on its grid."""
        import torch

        width, runs = schedule.grids[scale][1], ((scale, cells.shape[1]),)
        place = cells + schedule.tokens(0, scale)
        return cls(torch.full_like(cells, scale), cells // width, cells % width, runs, place)

    @classmethod
    def concat(cls, parts: list[Positions]) -> Positions:
        """One sequence from several, in order."""
        import torch

        runs = sum((p.runs for p in parts), ()) if all(p.runs for p in parts) else ()
        names = ["scale", "row", "col"]
        names += ["place"] * all(hasattr(p.place, "shape") for p in parts)
        joined = {name: torch.cat([getattr(p, name) for p in parts], dim=1) for name in names}
        slices = [p.place for p in parts if isinstance(p.place, slice)]
        if len(slices) == len(parts) and all(a.stop == b.start for a, b in pairwise(slices)):
            joined["place"] = slice(slices[0].start, slices[-1].stop)
        return cls(**joined, runs=runs)

    def part(self, tokens: slice) -> Positions:
        """Some of the tokens."""
        place = self.place
        if isinstance(place, slice):
            place = range(place.start, place.stop)[tokens]
            place = slice(place.start, place.stop)
        elif place is not None:
            place = place[:, tokens]
        cells = (x[:, tokens] for x in (self.scale, self.row, self.col))
        return Positions(*cells, self._runs_of(tokens), place)

    def told(self) -> tuple[tuple[int, int], ...]:
        """The runs; where they are not known, by asking the device."""
        return self.runs or tuple((scale, len(list(same))) for scale, same in groupby(self.scale[0].tolist()))

    def _runs_of(self, tokens: slice) -> tuple[tuple[int, int], ...]:
        """The runs of a part."""
        first, end, _ = tokens.indices(len(self))
        found, start = [], 0
        for scale, count in self.runs:
            inside = min(end, start + count) - max(first, start)
            found += [(scale, inside)] if inside > 0 else []
            start += count
        return tuple(found)

    def take(self, table: Tensor) -> Tensor:
        """What a table (1, T, ...) or (B, T) over all tokens says of these, (B or 1, N, ...)."""
        if isinstance(self.place, slice):
            return table[:, self.place]
        if len(table) == 1:
            return table[0][self.place]
        return table.gather(1, self.place.expand(len(table), -1))

    def __len__(self) -> int:
        return self.scale.shape[1]
