"""Pictures of a result: score and textures against time, and the some prompts by every method.

Both lie on a light ground of their own, so that they can be read on a dark page as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from .analysis import Study
from .bootstrap import Interval
from .rows import CODEC

_GROUND, _INK, _QUIET, _LINE = "#ffffff", "#1f2328", "#59636e", "#d1d9e0"
_COLOURS = {"dense": "#1f2328", "draft": "#0969da", "fastvar": "#bc4c00", "moss": "#cf222e"}
_PANEL = (720, 560)
_EDGES = (70, 46, 30, 62)  # left, top, right, bottom: room for axes and titles
_DOT = 6
_TIMES = (1, 2, 5)  # ticks of every power of ten


@dataclass(frozen=True)
class Point:
    """A method: seconds, and a value with its interval."""

    name: str
    seconds: float
    value: Interval

    @property
    def colour(self) -> str:
        return next(colour for start, colour in _COLOURS.items() if self.name.startswith(start))


@dataclass(frozen=True)
class Axes:
    """From seconds (logarithmic) and shares (0 to 1) to pixels of a panel."""

    left: float
    right: float

    def x(self, seconds: float) -> float:
        share = math.log(seconds / self.left) / math.log(self.right / self.left)
        return _EDGES[0] + share * (_PANEL[0] - _EDGES[0] - _EDGES[2])

    def y(self, value: float) -> float:
        return _PANEL[1] - _EDGES[3] - value * (_PANEL[1] - _EDGES[1] - _EDGES[3])


def pareto(study: Study) -> bytes:
    """Two panels, score and texture against drawing time, as a PNG file."""
    panels = [_panel("Score: mean of the six tasks", study, study.score)]
    if study.textured("dense"):
        panels.append(_panel("Texture shown: share of the prompts that name one", study, study.textured))
    whole = Image.new("RGB", (len(panels) * _PANEL[0], _PANEL[1]), _GROUND)
    for n, panel in enumerate(panels):
        whole.paste(panel, (n * _PANEL[0], 0))
    return _png(whole)


def _panel(title: str, study: Study, value: Callable[[str], Interval]) -> Image.Image:
    """Every method's value against its time, and what the codec's reconstructions of the truth have."""
    points = [Point(name, study.seconds(name), value(name)) for name in study.methods]
    image = Image.new("RGB", _PANEL, _GROUND)
    draw = ImageDraw.Draw(image)
    draw.text((_EDGES[0], 22), title, _INK, _font(18), "lm")
    times = [point.seconds for point in points]
    axes = Axes(0.8 * min(times), 1.45 * max(times))
    _draw_axes(draw, axes)
    _draw_ceiling(draw, axes, value(CODEC).value)
    front = _front(points)
    draw.line([(axes.x(p.seconds), axes.y(p.value.value)) for p in front], _LINE, 3)
    taken = [_box(axes, point) for point in points]
    for point in points:
        _draw_point(draw, axes, point, point in front)
    for point in points:
        taken.append(_label(draw, axes, point, taken))
    return image


def _front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both time and value, by time."""
    best, front = -math.inf, []
    for point in sorted(points, key=lambda p: (p.seconds, -p.value.value)):
        if point.value.value > best:
            best = point.value.value
            front.append(point)
    return front


def _draw_axes(draw: ImageDraw.ImageDraw, axes: Axes) -> None:
    bottom, right = _PANEL[1] - _EDGES[3], _PANEL[0] - _EDGES[2]
    for n in range(6):
        y = axes.y(n / 5)
        draw.line([(_EDGES[0], y), (right, y)], _LINE)
        draw.text((_EDGES[0] - 10, y), f"{n / 5:.1f}", _QUIET, _font(15), "rm")
    powers = range(math.floor(math.log10(axes.left)), math.ceil(math.log10(axes.right)) + 1)
    for tick in (step * 10.0**power for power in powers for step in _TIMES):
        if axes.left <= tick <= axes.right:
            draw.line([(axes.x(tick), bottom), (axes.x(tick), bottom + 6)], _QUIET)
            draw.text((axes.x(tick), bottom + 18), f"{1000 * tick:g}", _QUIET, _font(15), "mm")
    draw.line([(_EDGES[0], bottom), (right, bottom)], _QUIET)
    draw.text(((_EDGES[0] + right) / 2, bottom + 44), "drawing time a picture, ms (logarithmic)", _QUIET, _font(15), "mm")


def _draw_ceiling(draw: ImageDraw.ImageDraw, axes: Axes, value: float) -> None:
    """A dashed line at what the codec alone allows."""
    y = axes.y(value)
    for x in range(_EDGES[0], _PANEL[0] - _EDGES[2], 12):
        draw.line([(x, y), (x + 6, y)], _QUIET)
    draw.text((_EDGES[0] + 6, y + 10), "codec alone", _QUIET, _font(13), "lm")


def _draw_point(draw: ImageDraw.ImageDraw, axes: Axes, point: Point, filled: bool) -> None:
    """A dot, filled on the front, and its interval."""
    x, y = axes.x(point.seconds), axes.y(point.value.value)
    draw.line([(x, axes.y(point.value.low)), (x, axes.y(point.value.high))], point.colour, 2)
    draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), point.colour if filled else _GROUND, point.colour, 2)


Box = tuple[float, float, float, float]


def _box(axes: Axes, point: Point) -> Box:
    x, y = axes.x(point.seconds), axes.y(point.value.value)
    return x - _DOT, y - _DOT, x + _DOT, y + _DOT


def _label(draw: ImageDraw.ImageDraw, axes: Axes, point: Point, taken: Sequence[Box]) -> Box:
    """Write the name where it covers least of what is taken; returns where it stands."""
    x, y, font = axes.x(point.seconds), axes.y(point.value.value), _font(15)
    spots = [
        (x + side * (_DOT + 5), y + shift, anchor)
        for shift in (0, -16, 16, -32, 32, -48, 48) for side, anchor in ((1, "lm"), (-1, "rm"))
    ]  # fmt: skip
    boxes = [draw.textbbox(spot[:2], point.name, font, spot[2]) for spot in spots]
    costs = [sum(_overlap(box, other) for other in taken) + max(0, box[2] - _PANEL[0]) * 99 for box in boxes]
    best = costs.index(min(costs))
    draw.text(spots[best][:2], point.name, point.colour, font, spots[best][2])
    return boxes[best]


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


# --- the grid ---------------------------------------------------------------------------------------------------


def grid(pictures: Mapping[tuple[int, str], bytes], names: Sequence[str], prompts: Mapping[int, str], side: int = 128) -> bytes:
    """A row for every prompt, by number, and a column for every name, as a PNG file."""
    gap, heading, caption = 6, 26, 22
    width, height = len(names) * (side + gap) + gap, heading + len(prompts) * (side + caption + gap)
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    lefts = {name: gap + column * (side + gap) for column, name in enumerate(names)}
    for name, left in lefts.items():
        draw.text((left + side / 2, heading / 2), name, _INK, _font(14), "mm")
    for row, (n, prompt) in enumerate(prompts.items()):
        top = heading + row * (side + caption + gap)
        draw.text((gap, top + caption / 2), prompt, _QUIET, _font(14), "lm")
        for name, left in lefts.items():
            with Image.open(BytesIO(pictures[n, name])) as picture:
                sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, top + caption))
    return _png(sheet)


def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
