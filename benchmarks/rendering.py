"""Renders scenes of the shapes world.

Nothing in a picture is random per pixel: what a caption leaves open is a few pixels of jitter in position
and size.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .world import BACKGROUNDS, COLORS, SHAPES, Scene, Thing, complete

# Lengths below are pixels of a picture whose shorter side is 256; everything scales with that side.
_REFERENCE = 256.0
_SUPERSAMPLING = 2
_DARKENING = 0.5
# Textures lie still in the picture and repeat with the fastest rotary waves of two positions a token
# (stride 8), so that a token can know where in one it lies; checks, down their columns, with twice the next
# wave.  A 16 x 16 grid cannot carry them.
PERIOD = 8 * np.pi
CHECK_HEIGHT = PERIOD / 2 * 10**0.5
# In pictures from this side on, every texture is mixed with itself at half its size, which a 32 x 32 grid
# cannot carry.
FINE_SIDE = 512
_RADIUS = {1: 72.0, 2: 50.0, 3: 44.0, 4: 44.0}
_OFFSET = 62.0
_POSITION_JITTER = 5.0
_RADIUS_JITTER = 3.0
_ROW_ASPECT = {3: 1.4, 4: 2.2}
_MAX_SPREAD = 1.5


@cache
def outline(shape: str) -> np.ndarray:
    """Corners of a shape as a read-only (n, 2) array of x, y (y points down) within [-1.01, 1.01]."""
    if shape == "circle":
        angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        points = 0.93 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif shape == "square":
        points = 0.86 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    elif shape == "triangle":
        points = np.array([(0, -0.9), (1, 0.832), (-1, 0.832)])
    elif shape == "star":
        angle = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2 == 0, 1.06, 0.46)
        points = np.stack([radius * np.sin(angle), 0.06 - radius * np.cos(angle)], axis=1)
    elif shape == "cross":
        arm, end = 0.34, 0.96
        corner = np.array([(arm, -end), (arm, -arm), (end, -arm)])
        turns = [
            np.array([(np.cos(a), np.sin(a)), (-np.sin(a), np.cos(a))]) for a in np.arange(4) * np.pi / 2
        ]
        points = np.concatenate([corner @ turn for turn in turns])
    elif shape == "heart":
        t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        points = np.stack([16 * np.sin(t) ** 3, -2.2 - height], axis=1) / 16.2
    else:
        raise ValueError(f"unknown shape {shape!r}, expected one of {SHAPES}")
    points.setflags(write=False)
    return points


def silhouette(shape: str, cx: float, cy: float, radius: float, height: int, width: int) -> np.ndarray:
    """Antialiased coverage, float32 (height, width) in [0, 1], of a shape; centre and radius in pixels."""
    k = _SUPERSAMPLING
    canvas = Image.new("L", (width * k, height * k), 0)
    # PIL fills up to and including the outline's pixels, which lie half a pixel off the geometric edge.
    points = (outline(shape) * radius + (cx, cy)) * k - 0.5
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=255)
    return np.asarray(canvas.reduce(k), np.float32) / 255


def _bands(coordinate: np.ndarray, period: float) -> np.ndarray:
    """Signed distance to the nearest edge of bands of half a period; positive in the band around zero."""
    return period / 4 - np.abs((coordinate + period / 2) % period - period / 2)


def _shade(name: str, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray:
    """What a texture leaves (0 to 1) of a colour at pixels (x, y) of the picture."""
    dark = np.asarray(_texture(name, x, y, unit), np.float32)
    if unit >= FINE_SIDE / _REFERENCE:
        dark = (dark + np.asarray(_texture(name, x, y, unit / 2), np.float32)) / 2
    return 1 - _DARKENING * dark


def _texture(name: str, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray | float:
    """How dark (0 to 1) a texture is at pixels (x, y) of the picture; edges one pixel soft."""
    if name == "plain":
        return 0.0
    period = PERIOD * unit
    if name == "striped":
        return np.clip(_bands(x, period) + 0.5, 0, 1)
    if name == "checkered":
        across, down = (np.clip(2 * _bands(*axis), -1, 1) for axis in ((x, period), (y, CHECK_HEIGHT * unit)))
        return 0.5 + 0.5 * across * down
    return np.clip(
        7.6 * unit - np.hypot(*((axis + period / 2) % period - period / 2 for axis in (x, y))) + 0.5, 0, 1
    )


def _render_background(scene: Scene, height: int, width: int, unit: float) -> np.ndarray:
    level = BACKGROUNDS[scene.background]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    if scene.style == "gradient":
        level = level + 40 * (0.5 - y / height)
    elif scene.style == "striped":
        level = level + 18 * (np.clip(_bands((x - y) / np.sqrt(2), 32 * unit) + 0.5, 0, 1) - 0.5)
    gray = np.broadcast_to(np.clip(np.float32(level), 0, 255), (height, width))
    return np.repeat(gray[..., None], 3, axis=2)


def _grid(scene: Scene, height: int, width: int) -> list[tuple[float, float]]:
    """Canonical centres of the objects relative to the picture's centre, in pixels."""
    count, short, along_x = len(scene.things), min(height, width), width >= height
    aspect = max(height, width) / short
    dx, dy = (_OFFSET / _REFERENCE * min(side, _MAX_SPREAD * short) for side in (width, height))
    if count == 1:
        return [(0.0, 0.0)]
    if count == 2:
        relation = scene.relation or ("left" if along_x else "above")
        sign = 1 if relation in ("left", "above") else -1
        step = (sign * dx, 0.0) if relation in ("left", "right") else (0.0, sign * dy)
        return [(-step[0], -step[1]), step]
    if aspect >= _ROW_ASPECT[count]:
        row = [(i + 0.5 - count / 2) * short * min(aspect, 0.56 * count) / count for i in range(count)]
        return [(t, 0.0) if along_x else (0.0, t) for t in row]
    last = [(0.0, dy)] if count == 3 else [(-dx, dy), (dx, dy)]
    return [(-dx, -dy), (dx, -dy), *last]


def layout(
    scene: Scene, rng: np.random.Generator, height: int, width: int
) -> list[tuple[float, float, float]]:
    """Centre x, centre y and radius in pixels of each of `scene.things`: canonical places, a small jitter."""
    unit = min(height, width) / _REFERENCE
    places = []
    for x, y in _grid(scene, height, width):
        jx, jy = rng.uniform(-_POSITION_JITTER, _POSITION_JITTER, 2) * unit
        radius = (_RADIUS[len(scene.things)] + rng.uniform(-_RADIUS_JITTER, _RADIUS_JITTER)) * unit
        places.append((width / 2 + x + jx, height / 2 + y + jy, radius))
    return places


def _paint(image: np.ndarray, thing: Thing, cx: float, cy: float, radius: float, unit: float) -> None:
    """Draws one object into the float32 (H, W, 3) image, touching only its bounding box."""
    reach = 1.02 * radius + 2
    x0, y0 = max(0, int(cx - reach)), max(0, int(cy - reach))
    box = image[y0 : int(cy + reach) + 1, x0 : int(cx + reach) + 1]
    height, width = box.shape[:2]
    mask = silhouette(thing.shape, cx - x0, cy - y0, radius, height, width)[..., None]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    shade = _shade(thing.texture, x + x0, y + y0, unit)
    box += mask * (np.array(COLORS[thing.color], np.float32) * shade[..., None] - box)


def render(scene: Scene, rng: np.random.Generator, height: int = 256, width: int = 256) -> np.ndarray:
    """The picture of a scene, uint8 (height, width, 3), RGB.

    Heights and widths of 144 to 448 pixels keep all objects apart from each other and from the border. What
    the scene leaves open is drawn from `rng`, as is the jitter of the layout.
    """
    scene = complete(scene, rng)
    unit = min(height, width) / _REFERENCE
    image = _render_background(scene, height, width, unit)
    for thing, (cx, cy, radius) in zip(scene.things, layout(scene, rng, height, width), strict=True):
        _paint(image, thing, cx, cy, radius, unit)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
