"""Finds the shapes of a picture of the shapes world by colour and outline, and scores it as GenEval does.

No learned weights: objects are the saturated regions in front of a neutral background, their colour is the
hue of the palette nearest to their bright parts (textures darken) and their shape is the silhouette which
covers them best.  An object's texture is told by how strongly its brightness waves as each texture's would,
at any phase.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image

from .rendering import CHECK_HEIGHT, FINE_SIDE, PERIOD, outline, silhouette
from .world import COLORS, SHAPES, Scene

_WORKING_SIDE = 128
_MIN_CHROMA = 42.0
_MIN_AREA = 0.009 * _WORKING_SIDE**2
_SPLIT_SHARE = 0.22
_BRIGHT_SHARE = 0.5
_RIM = 4
_MIN_IOU = 0.78
_TEMPLATE_SIDE = 48
_POSITION_MARGIN = 0.08


@dataclass(frozen=True)
class Detection:
    """One object: centroid (`cx`, `cy`) in pixels, `area` in square pixels of the picture.

    `score` is the overlap (intersection over union, 0 to 1) with the silhouette of `shape`; `shape` is None
    where no silhouette fits well enough. `mask` is the filled region, bool, in a copy of the picture whose
    shorter side is 128.
    """

    shape: str | None
    color: str
    cx: float
    cy: float
    area: float
    score: float
    mask: np.ndarray = field(repr=False, compare=False)


# --- regions ------------------------------------------------------------------------------------------------


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the 4-connected regions of a boolean (H, W) mask.

    Returns int32 (H, W) with 0 outside the mask and 1 to n inside, and n. Works on horizontal runs: each is
    joined with the runs it overlaps in the row above.
    """
    stride = mask.shape[1] + 1
    flat = np.pad(mask, ((0, 0), (0, 1))).ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    starts, ends = edges[0::2], edges[1::2]
    first = np.searchsorted(ends, starts - stride, side="right")
    last = np.searchsorted(starts, ends - stride, side="left")
    _, ids = np.unique(_join(first.tolist(), last.tolist()), return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(ids + 1, ends - starts)
    return labels, int(ids.max(initial=-1)) + 1


def _join(first: list[int], last: list[int]) -> np.ndarray:
    """Union-find over runs, where run i touches the runs first[i] to last[i] - 1; returns each run's root."""
    parent = list(range(len(first)))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for run, (begin, end) in enumerate(zip(first, last, strict=True)):
        for above in range(begin, end):
            parent[find(run)] = find(above)
    return np.array([find(run) for run in range(len(parent))], np.int64)


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    labels, _ = label_regions(~np.pad(mask, 1))
    return (labels != labels[0, 0])[1:-1, 1:-1]


def _neighbourhood(values: np.ndarray, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Combines each 3 x 3 neighbourhood of the first two axes, the border repeated outwards."""
    padded = np.pad(values, ((1, 1), (1, 1)) + ((0, 0),) * (values.ndim - 2), mode="edge")
    rows = combine(combine(padded[:-2], padded[1:-1]), padded[2:])
    return combine(combine(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _clean(mask: np.ndarray) -> np.ndarray:
    """Closes gaps of up to two pixels, then removes bridges and specks of up to four."""
    for combine in (np.logical_or, *3 * (np.logical_and,), *2 * (np.logical_or,)):
        mask = _neighbourhood(mask, combine)
    return mask


def _shrink(image: np.ndarray) -> tuple[np.ndarray, float]:
    """A smoothed float32 copy whose shorter side is the working side, and its pixels per pixel of the image.
    """
    height, width = image.shape[:2]
    scale = _WORKING_SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), np.float32)
    return _neighbourhood(small, np.add) / 9, scale


# --- colour -------------------------------------------------------------------------------------------------


def _hue(rgb: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 2) on the colour circle. Scaling a colour, as a darker texture does, keeps its hue.
    """
    red, green, blue = np.moveaxis(rgb, -1, 0)
    plane = np.stack([red - 0.5 * (green + blue), np.sqrt(0.75) * (green - blue)], axis=-1)
    return plane / np.maximum(np.linalg.norm(plane, axis=-1, keepdims=True), 1e-6)


_PALETTE = _hue(np.array(list(COLORS.values()), np.float32)).T
# red and orange, orange and yellow, blue and purple
_RELATED = _PALETTE.T @ _PALETTE > np.cos(np.radians(55))


def _color(pixels: np.ndarray) -> str:
    """The palette's colour of an object's pixels (n, 3). Blur shifts the hue of dark parts, so the brightest
    decide.
    """
    value = pixels.max(-1)
    bright = pixels[value >= np.quantile(value, 1 - _BRIGHT_SHARE)].mean(0)
    return list(COLORS)[int((_hue(bright) @ _PALETTE).argmax())]


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    """The filled regions of a mask which are large enough to be objects."""
    labels, count = label_regions(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return [_fill_holes(labels == i) for i in range(1, count + 1) if sizes[i] >= _MIN_AREA]


# --- shape --------------------------------------------------------------------------------------------------


def _centroid(mask: np.ndarray) -> tuple[float, float]:
    y, x = np.nonzero(mask)
    return float(x.mean()) + 0.5, float(y.mean()) + 0.5


def _normalize(mask: np.ndarray) -> np.ndarray:
    """The mask resampled bilinearly to the template side, with its centroid in the middle and a fixed area.
    """
    x, y = _centroid(mask)
    reach = np.sqrt(mask.sum())
    box = (x - reach, y - reach, x + reach, y + reach)
    source = Image.fromarray(mask.astype(np.uint8) * 255)
    side = (_TEMPLATE_SIDE, _TEMPLATE_SIDE)
    coefficients = (2 * reach / _TEMPLATE_SIDE, 0, box[0], 0, 2 * reach / _TEMPLATE_SIDE, box[1])
    sampled = source.transform(side, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(sampled, np.float32) / 255


@cache
def _templates() -> np.ndarray:
    """Normalised silhouettes, float32 (shapes, side, side), cleaned at a typical size as the detected regions
    are.
    """
    masks = [silhouette(shape, 40.0, 40.0, 28.0, 80, 80) > 0.5 for shape in SHAPES]
    return np.stack([_normalize(_clean(mask)) for mask in masks])


def _classify(mask: np.ndarray) -> tuple[str | None, float]:
    """The best fitting shape, or None below the confidence floor, and its soft intersection over union."""
    candidate, templates = _normalize(mask), _templates()
    overlap = np.minimum(candidate, templates).sum((1, 2)) / np.maximum(candidate, templates).sum((1, 2))
    best = int(overlap.argmax())
    return (SHAPES[best] if overlap[best] >= _MIN_IOU else None), float(overlap[best])


def _split(region: np.ndarray, affinity: np.ndarray, chroma: np.ndarray) -> list[np.ndarray]:
    """The masks of a region's objects: several where several colours hold large shares.

    Related colours may also be one object whose hue a codec has shifted in places; what fits silhouettes
    better counts.
    """
    weight = np.bincount(affinity[region].argmax(-1), chroma[region], minlength=len(COLORS))
    large = np.flatnonzero(weight >= min(_SPLIT_SHARE * weight.sum(), weight.max()))
    if len(large) == 1:
        return [region]
    nearest = large[affinity[..., large].argmax(-1)]
    parts = [part for index in large for part in _regions(_clean(region & (nearest == index)))]
    if not _RELATED[np.ix_(large, large)].all():
        return parts
    fits = [_classify(part)[1] for part in parts]
    return parts if fits and np.mean(fits) > _classify(region)[1] else [region]


def detect(image: np.ndarray) -> list[Detection]:
    """All objects of an RGB picture, uint8 (H, W, 3), best fitting first.

    Raises ValueError for any other dtype or layout.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 (H, W, 3) picture, got {image.dtype} {image.shape}")
    small, scale = _shrink(image)
    chroma = small.max(-1) - small.min(-1)
    affinity = _hue(small) @ _PALETTE
    found = []
    for region in _regions(_clean(chroma > _MIN_CHROMA)):
        for part in _split(region, affinity, chroma):
            x, y = _centroid(part)
            shape, overlap = _classify(part)
            area = float(part.sum()) / scale**2
            found.append(Detection(shape, _color(small[part]), x / scale, y / scale, area, overlap, part))
    return sorted(found, key=lambda detection: -detection.score)


def interior(found: list[Detection], height: int, width: int) -> np.ndarray:
    """Where in a picture, bool (height, width), its objects are, without a rim which a blurred outline may
    reach.
    """
    inside = np.zeros((height, width), bool)
    for detection in found:
        mask = detection.mask
        for _ in range(_RIM):
            mask = _neighbourhood(mask, np.logical_and)
        inside |= np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return inside


# --- scoring ------------------------------------------------------------------------------------------------


def _has_all(scene: Scene, found: list[Detection], with_color: bool) -> bool:
    wanted = [group.thing for group in scene.groups]
    return all(
        any(d.shape == t.shape and (not with_color or d.color == t.color) for d in found) for t in wanted
    )


def _counts(scene: Scene, found: list[Detection]) -> bool:
    """Exactly the wanted number, and nothing else in the picture."""
    group = scene.groups[0]
    return len(found) == group.count and all(d.shape == group.thing.shape for d in found)


def _stands(scene: Scene, found: list[Detection], margin: float) -> bool:
    """Whether the best match of the first thing lies on the wanted side of the best match of the second."""
    if scene.relation is None:
        raise ValueError("the position task needs a scene with a relation")
    first, second = (next((d for d in found if d.shape == group.thing.shape), None) for group in scene.groups)
    if first is None or second is None:
        return False
    right, down = first.cx - second.cx, first.cy - second.cy
    return {"left": -right, "right": right, "above": -down, "below": down}[scene.relation] > margin


def score(task: str, scene: Scene, image: np.ndarray) -> bool:
    """Whether a picture, uint8 (H, W, 3), shows what one of GenEval's six tasks asks for; see `judge`."""
    return judge(task, scene, detect(image), min(image.shape[:2]))


def judge(task: str, scene: Scene, found: list[Detection], side: int) -> bool:
    """Whether the objects found in a picture, whose shorter side is given in pixels, are what one of
    GenEval's tasks asks for.

    single_object, two_object: the shapes are there. counting: exactly that many, and nothing else. colors,
    color_attr: each shape is there in its colour. position: both shapes are there and the first lies clearly
        left of,
    right of, above or below the second. Raises ValueError for another task, and for position without a
    relation.
    """
    if task in ("single_object", "two_object"):
        return _has_all(scene, found, with_color=False)
    if task in ("colors", "color_attr"):
        return _has_all(scene, found, with_color=True)
    if task == "counting":
        return _counts(scene, found)
    if task == "position":
        return _stands(scene, found, _POSITION_MARGIN * side)
    raise ValueError(f"unknown task {task!r}")


# --- textures -----------------------------------------------------------------------------------------------

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
    area, cx, cy = measures(found.shape)
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


def measures(shape: str) -> tuple[float, float, float]:
    """Area, and x and y of the centroid, of the outline at radius 1."""
    x, y = outline(shape).T
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    cross = x * y_next - x_next * y
    return (
        abs(cross.sum()) / 2,
        ((x + x_next) @ cross) / (3 * cross.sum()),
        ((y + y_next) @ cross) / (3 * cross.sum()),
    )
