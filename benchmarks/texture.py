"""Which texture an object has: how strongly its brightness waves as each texture's would, at any phase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .detector import Detection
from .rendering import CHECK_HEIGHT, FINE_SIDE, PERIOD, outline, silhouette
from .world import Scene

_REFERENCE = 256.0  # pixels of the shorter side that PERIOD is measured in
_INSIDE = 0.9  # of the object's size: what lies closer to its outline is left out
_LEAST = 0.3  # of a rendered texture's strength; below, an object counts as plain
# How strong the waves of a rendered texture are: along rows only, along both slants, along rows and columns.
_FULL = {"striped": 0.21, "checkered": 0.135, "dotted": 0.1}
_FINE_SHARE = 0.5  # of these is either size of a texture, in pictures where two are mixed


def strengths(image: np.ndarray, found: Detection) -> dict[str, float]:
    """By texture, how much of it an object of a known shape shows: about 1 as rendered, 0 or less for none.

    Large pictures show textures in two sizes at once; there the weaker one counts.

    Args:
        image: uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    side = min(height, width)
    area, cx, cy = _measures(found.shape)
    radius = _INSIDE * np.sqrt(found.area / area)
    inside = (
        silhouette(found.shape, found.cx - cx * radius, found.cy - cy * radius, radius, height, width) > 0.5
    )
    y, x = np.nonzero(inside)
    value = image[inside].max(-1).astype(np.float32)
    value = value / max(value.mean(), 1.0) - 1
    unit = side / _REFERENCE
    coarse = _waves(value, x / unit, y / unit)
    if side < FINE_SIDE:
        return {name: coarse[name] / full for name, full in _FULL.items()}
    fine = _waves(value, 2 * x / unit, 2 * y / unit)
    return {name: min(coarse[name], fine[name]) / (_FINE_SHARE * full) for name, full in _FULL.items()}


def _waves(value: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """By texture, how strongly brightness (n,) at x and y (n,) waves as that one's would."""

    def wave(across: float, down: float) -> float:
        return float(abs(np.mean(value * np.exp(-2j * np.pi * (x * across + y * down)))))

    rows, columns = wave(1 / PERIOD, 0), wave(0, 1 / PERIOD)
    slanted = min(wave(1 / PERIOD, 1 / CHECK_HEIGHT), wave(1 / PERIOD, -1 / CHECK_HEIGHT))
    return {"striped": rows - max(columns, slanted), "checkered": slanted, "dotted": min(rows, columns)}


def texture_of(image: np.ndarray, found: Detection) -> str:
    """The name of the object's texture, "plain" where none is clear."""
    shown = strengths(image, found)
    best = max(shown, key=shown.__getitem__)
    return best if shown[best] >= _LEAST else "plain"


def shows_texture(scene: Scene, found: Sequence[Detection], image: np.ndarray) -> bool | None:
    """Whether all things whose texture a scene names are in the picture with it; None where it names none."""
    wanted = [group.thing for group in scene.groups if group.thing.texture != "plain"]
    if not wanted:
        return None
    return all(any(d.shape == t.shape and texture_of(image, d) == t.texture for d in found) for t in wanted)


def _measures(shape: str) -> tuple[float, float, float]:
    """Area, and x and y of the centroid, of the outline at radius 1."""
    x, y = outline(shape).T
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    cross = x * y_next - x_next * y
    return (
        abs(cross.sum()) / 2,
        ((x + x_next) @ cross) / (3 * cross.sum()),
        ((y + y_next) @ cross) / (3 * cross.sum()),
    )
