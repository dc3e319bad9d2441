"""Pictures of results: quality against time, everything a search tried, and some prompts by every method."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from .analysis import Interval, Study
from .draw import CODEC

COLOURS = {
    "dense": "#1f2328", "draft": "#0969da", "fastvar": "#bc4c00", "moss": "#cf222e", "plan": "#1a7f37",
    "sparse": "#1a7f37",
}
_SHORT = 16  # letters that still fit beside a dot
QUIET, TRIED = "#59636e", "#94a0b2"
MARKS = ("#d55e00", "#0072b2", "#009e73")  # Okabe and Ito: told apart with any colour vision


@dataclass(frozen=True)
class Point:
    """A method: seconds, and a value with its interval."""

    name: str
    seconds: float
    value: Interval

    @property
    def colour(self) -> str:
        if "@" in self.name:
            return COLOURS["plan"]
        return next((colour for start, colour in COLOURS.items() if self.name.startswith(start)), QUIET)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both time and value, by time."""
    best, found = -math.inf, []
    for point in sorted(points, key=lambda p: (p.seconds, -p.value.value)):
        if point.value.value > best:
            best = point.value.value
            found.append(point)
    return found


def pareto(study: Study) -> bytes:
    """Score, and texture where prompts name one, against drawing time; filled dots are on the front.  A PNG
    file."""
    panels = {"Score: mean of the six tasks": study.score}
    if study.textured("dense"):
        panels["Texture shown: share of the prompts that name one"] = study.textured
    keys = short_names(study.methods)
    long = [f"{key}: {name}" for name, key in keys.items() if key != name]
    figure = Figure((7.2 * len(panels), 5.6 + 0.2 * len(long)), layout="constrained")
    if long:
        figure.supxlabel("\n".join(long), x=0.01, ha="left", fontsize="small", color=COLOURS["plan"])
    for axes, (
        title, value
    ) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _panel(axes, title, study, value, keys)
    return _png(figure)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names as they fit into plots: long ones, which are plans as text, by letter."""
    long = [name for name in names if len(name) > _SHORT]
    return {name: chr(ord("A") + long.index(name)) if name in long else name for name in names}


def _panel(
    axes: Axes, title: str, study: Study, value: Callable[[str], Interval], keys: Mapping[str, str]
) -> None:
    points = [Point(name, study.seconds(name), value(name)) for name in study.methods]
    best = front(points)
    axes.plot(
        [p.seconds for p in best], [p.value.value for p in best], color="#d1d9e0", linewidth=2, zorder=1
    )
    for p in points:
        reach = [[p.value.value - p.value.low], [p.value.high - p.value.value]]
        face = p.colour if p in best else "white"
        axes.errorbar(
            p.seconds, p.value.value, reach, fmt="o", color=p.colour, markerfacecolor=face, markersize=8
        )
    _line(axes, "codec alone", value(CODEC).value)
    low = max(-0.03, min(p.value.low for p in points) - 0.1)
    axes.set(xscale="log", ylim=(low, 1.03), xlabel="drawing time a picture, ms (logarithmic)")
    axes.set_xlim(0.8 * min(p.seconds for p in points), 1.45 * max(p.seconds for p in points))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{1000 * seconds:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left")
    axes.grid(axis="y", color="#d1d9e0")
    axes.set_axisbelow(True)
    _name(axes, points, keys)


def _name(axes: Axes, points: Sequence[Point], keys: Mapping[str, str]) -> None:
    """Names beside the dots, from the left, each moved until it lies on no other and inside the frame."""
    axes.figure.draw_without_rendering()
    dots = axes.transData.transform([(p.seconds, p.value.value) for p in points])
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in dots]
    x0, y0, x1, y1 = axes.bbox.extents
    taken += [(x0, y1, x1, y1 + 99), (x0, y0 - 99, x1, y0), (x0 - 999, y0, x0, y1), (x1, y0, x1 + 999, y1)]
    for (x, y), point in sorted(zip(dots, points, strict=True), key=lambda pair: tuple(pair[0])):
        name = keys[point.name]
        width = 8 * len(name)
        spots = [(side, up) for up in (0, 15, -15, 30, -30, 45, -45) for side in ("left", "right")]
        boxes = {
            (side, up): (
                left := x + 10 if side == "left" else x - 10 - width, y + up - 7, left + width, y + up + 7
            )
            for side, up in spots
        }
        best = min(spots, key=lambda spot: sum(_overlap(boxes[spot], other) for other in taken))
        taken.append(boxes[best])
        place = axes.transData.inverted().transform((x + (10 if best[0] == "left" else -10), y + best[1]))
        axes.text(*place, name, color=point.colour, ha=best[0], va="center")


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def scatter(
    title: str, across: str, points: Sequence[tuple[float, float]], marks: Mapping[str, tuple[float, float]],
    lines: Mapping[str, float],
) -> bytes:
    """Everything that was tried, with named points above the others, named heights.  A PNG
    file.
    """
    figure = Figure((8.6, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*zip(*points, strict=True), color=TRIED)
    for (name, place), colour in zip(marks.items(), MARKS, strict=False):
        axes.scatter(*place, s=120, color=colour, zorder=3)
        axes.annotate(name, place, (0, 9), textcoords="offset points", ha="center", color=colour)
    for name, height in lines.items():
        _line(axes, name, height)
    axes.set(xlabel=across)
    axes.set_title(title, loc="left")
    axes.grid(color="#e4e6ea")
    axes.set_axisbelow(True)
    return _png(figure)


def _line(axes: Axes, name: str, height: float) -> None:
    """A dashed line with its name at the right."""
    axes.axhline(height, color=QUIET, linestyle="--", linewidth=1)
    places = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(name, (1, height), (-4, -4), ha="right", va="top", color=QUIET, fontsize="small", **places)


def grid(
    pictures: Mapping[
        tuple[int, str], bytes
    ], names: Sequence[str], prompts: Mapping[int, str], side: float = 1.36
) -> bytes:
    """A row for every prompt, by number, and a column for every name, plans line by line, as a PNG file."""
    heads = [textwrap.fill(name.replace("; ", ";\n"), _SHORT, replace_whitespace=False) for name in names]
    lines = max(head.count("\n") for head in heads) + 1
    figure = Figure((side * len(names), (side + 0.26) * len(prompts) + 0.05 + 0.15 * lines))
    cells = figure.subplots(len(prompts), len(names), squeeze=False)
    top = 1 - (0.29 + 0.15 * lines) / figure.get_figheight()
    figure.subplots_adjust(left=0.004, right=0.996, bottom=0.01, top=top, wspace=0.04, hspace=0.24)
    for row, (n, prompt) in zip(cells, prompts.items(), strict=True):
        for axes, name in zip(row, names, strict=True):
            with Image.open(BytesIO(pictures[n, name])) as picture:
                axes.imshow(np.asarray(picture.convert("RGB")))
            axes.set_axis_off()
        row[0].set_title(prompt, loc="left", fontsize=9, color=QUIET)
    for axes, head in zip(cells[0], heads, strict=True):
        axes.annotate(
            head, (0.5, 1.2), xycoords="axes fraction", ha="center", fontsize=9 if lines == 1 else 8
        )
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
