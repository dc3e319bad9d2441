"""The plot of a calibration: the metric against the tokens of everything that was tried."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_SIZE, _SUPERSAMPLING = (860, 520), 2
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 56, 150, 60  # margins
_INK, _QUIET, _GRID, _PAPER = (28, 30, 36), (112, 116, 126), (228, 230, 234), (255, 255, 255)
_TRIED = (148, 160, 178)
_MARKS = ((213, 94, 0), (0, 114, 178), (0, 158, 115))  # Okabe and Ito: told apart with any colour vision
Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """What is plotted.

    Attributes:
        points: everything that was tried.
        marks: points with a name, drawn above the others.
        lines: heights with a name.
    """

    title: str
    across: str
    up: str
    points: Sequence[Point]
    marks: Mapping[str, Point]
    lines: Mapping[str, float]


def draw_chart(chart: Chart) -> bytes:
    """The chart as a PNG file."""
    canvas = _Canvas(chart)
    canvas.axes()
    for name, height in chart.lines.items():
        canvas.line(name, height)
    for point in chart.points:
        canvas.dot(point, 5, _TRIED)
    for n, (name, point) in enumerate(chart.marks.items()):
        canvas.mark(name, point, _MARKS[n % len(_MARKS)])
    return canvas.png()


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], about so many."""
    raw = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


class _Canvas:
    """Places in the chart as pixels of a picture, drawn larger and made smaller at the end."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart
        points = [*chart.points, *chart.marks.values()]
        self.x = _range([x for x, _ in points])
        self.y = _range([y for _, y in points] + list(chart.lines.values()))
        self.image = Image.new("RGB", tuple(_SUPERSAMPLING * side for side in _SIZE), _PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def at(self, point: Point) -> Point:
        width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM
        x = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        y = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + x * width, _TOP + (1 - y) * height

    def text(self, place: Point, text: str, colour: tuple, anchor: str, size: int = 14) -> None:
        font = ImageFont.load_default(_SUPERSAMPLING * size)
        self.draw.text(_large(place), text, colour, font, anchor)

    def axes(self) -> None:
        left, bottom = self.at((self.x[0], self.y[0]))
        right, top = self.at((self.x[1], self.y[1]))
        for x in ticks(*self.x):
            place = self.at((x, 0))[0]
            self.draw.line(_large((place, top, place, bottom)), _GRID, _SUPERSAMPLING)
            self.text((place, bottom + 8), f"{x:g}", _QUIET, "mt")
        for y in ticks(*self.y):
            place = self.at((0, y))[1]
            self.draw.line(_large((left, place, right, place)), _GRID, _SUPERSAMPLING)
            self.text((left - 8, place), f"{round(y, 6):g}", _QUIET, "rm")
        self.text((left, 22), f"{self.chart.title}: {self.chart.up}", _INK, "lm", 17)
        self.text(((left + right) / 2, _SIZE[1] - 18), self.chart.across, _INK, "mm")

    def line(self, name: str, height: float) -> None:
        (left, y), (right, _) = self.at((self.x[0], height)), self.at((self.x[1], height))
        for x in range(int(left), int(right), 10):
            self.draw.line(_large((x, y, min(x + 5, right), y)), _QUIET, _SUPERSAMPLING)
        self.text((right + 8, y), name, _QUIET, "lm", 13)

    def dot(self, point: Point, radius: float, colour: tuple) -> None:
        x, y = self.at(point)
        self.draw.ellipse(_large((x - radius, y - radius, x + radius, y + radius)), colour, _PAPER, _SUPERSAMPLING)

    def mark(self, name: str, point: Point, colour: tuple) -> None:
        self.dot(point, 8, colour)
        x, y = self.at(point)
        self.text((x, y - 13), name, colour, "mb", 15)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.image.reduce(_SUPERSAMPLING).save(buffer, "PNG")
        return buffer.getvalue()


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest value with a margin."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


def _large(places: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(_SUPERSAMPLING * place for place in places)
