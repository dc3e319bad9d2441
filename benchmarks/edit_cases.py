"""Cases of the shapes world in which a picture is to follow another prompt, and how the result is judged.

A case changes one thing: the colour, shape or texture of an object, the number of objects, or the background.
    Its
picture is rendered, and so is what a perfect edit would give: where the two differ is what may change.

The world puts things at canonical places, where a model draws them from the prompt alone, so that drawing
anew would pass for preserving.  Here the scene is a little smaller and moved; but not where textures count,
which lie still in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from .detector import Detection, detect, measures, texture_of
from .rendering import layout, render
from .suite import held_out
from .world import (
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    SHAPES,
    TEXTURES,
    Group,
    Scene,
    Thing,
    canonical_caption,
)

KINDS = ("colour", "shape", "texture", "count", "background")
_NEAR = 0.05  # of the side: how far an object may have moved
_SMALLER = 0.84  # of the side: the part that holds a moved scene
_DIFFERS = 12  # of 255: from which difference on a place may change
_RIM = 9  # pixels of 256 around such a place, odd


@dataclass(frozen=True)
class EditCase:
    """One change.

    Attributes:
        before, after: complete scenes that differ in one thing only.
        seed: of the jitter of both renderings.
    """

    kind: str
    before: Scene
    after: Scene
    seed: int

    @property
    def prompts(self) -> tuple[str, str]:
        """Of the source and of the target."""
        return canonical_caption(self.before), canonical_caption(self.after)

    def pictures(self, side: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """The source and the perfect edit, uint8 (side, side, 3)."""
        return self._picture(self.before, side), self._picture(self.after, side)

    def _picture(self, scene: Scene, side: int) -> np.ndarray:
        inner, left, top = self.window(side)
        rendered = render(scene, np.random.default_rng(self.seed), inner, inner)
        whole = np.full((side, side, 3), rendered[0, 0], np.uint8)
        whole[top : top + inner, left : left + inner] = rendered
        return whole

    def window(self, side: int) -> tuple[int, int, int]:
        """The square that holds the scene: its side, left and top."""
        if self.kind == "texture":
            return side, 0, 0
        inner = round(_SMALLER * side)
        rng = np.random.default_rng(self.seed + 1)
        left, top = (int(place) for place in rng.integers(side - inner + 1, size=2))
        return inner, left, top

    def places(self, side: int) -> list[tuple[float, float]]:
        """Centroids of the things of the target, x and y in pixels."""
        inner, left, top = self.window(side)
        found = layout(self.after, np.random.default_rng(self.seed), inner, inner)
        middles = [measures(thing.shape)[1:] for thing in self.after.things]
        pairs = zip(found, middles, strict=True)
        return [(x + left + r * cx, y + top + r * cy) for (x, y, r), (cx, cy) in pairs]

    def may_change(self, side: int = 256) -> np.ndarray:
        """Bool (side, side): the true mask, where the two renderings differ, and a rim around it."""
        before, after = (picture.astype(int) for picture in self.pictures(side))
        differs = (abs(before - after).max(-1) > _DIFFERS).astype(np.uint8) * 255
        rim = max(3, round(_RIM * side / 256) // 2 * 2 + 1)
        return np.asarray(Image.fromarray(differs).filter(ImageFilter.MaxFilter(rim))) > 0


def cases(per_kind: int, seed: int) -> list[EditCase]:
    """So many cases of every kind, the kinds in turn, the same for the same seed; targets are held out from
    training.
    """
    rng = np.random.default_rng(seed)
    made = [[_case(kind, n, rng) for n in range(per_kind)] for kind in KINDS]
    return [case for turn in zip(*made, strict=True) for case in turn]


def _case(kind: str, index: int, rng: np.random.Generator) -> EditCase:
    while True:
        before = _scene(kind, index, rng)
        after = _changed(kind, before, rng)
        if held_out(after):
            return EditCase(kind, before, after, int(rng.integers(2**31)))


def _other(rng: np.random.Generator, options: object, *used: object) -> str:
    free = [option for option in options if option not in used]
    return free[int(rng.integers(len(free)))]


def _scene(kind: str, index: int, rng: np.random.Generator) -> Scene:
    """Plain things but for the texture's cases; every second scene of one thing has another one beside it."""
    shape, colour = SHAPES[index % len(SHAPES)], _other(rng, COLORS)
    texture = "plain" if kind != "texture" or index % 2 else _other(rng, TEXTURES, "plain")
    count = 1 + int(rng.integers(MAX_OBJECTS)) if kind == "count" else 1
    groups = [Group(count, Thing(shape, colour, texture))]
    if kind != "count" and index // 2 % 2:
        groups.append(Group(1, Thing(_other(rng, SHAPES, shape), _other(rng, COLORS, colour))))
    return Scene(tuple(groups), None, _other(rng, BACKGROUNDS), "plain")


def _changed(kind: str, scene: Scene, rng: np.random.Generator) -> Scene:
    if kind == "background":
        return replace(scene, background=_other(rng, BACKGROUNDS, scene.background))
    group, others = scene.groups[0], scene.groups[1:]
    thing = group.thing
    if kind == "count":
        near = [n for n in (group.count - 1, group.count + 1) if 1 <= n <= MAX_OBJECTS]
        return replace(scene, groups=(replace(group, count=near[int(rng.integers(len(near)))]), *others))
    used = {name for other in others for name in (other.thing.shape, other.thing.color)}
    changed = {
        "colour": lambda: replace(thing, color=_other(rng, COLORS, thing.color, *used)),
        "shape": lambda: replace(thing, shape=_other(rng, SHAPES, thing.shape, *used)),
        "texture": lambda: replace(thing, texture=_other(rng, TEXTURES, thing.texture)),
    }[kind]()
    return replace(scene, groups=(replace(group, thing=changed), *others))


# --- judging ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a program sees.

    Attributes:
        fulfilled: the picture shows what the target's prompt changed.
        kept: it shows all else as it was, where it was.
    """

    fulfilled: bool
    kept: bool


def judge(case: EditCase, picture: np.ndarray) -> Verdict:
    """Of a picture, uint8 (side, side, 3)."""
    found = detect(picture)
    things = case.after.things
    if case.kind == "count":
        return Verdict(len(found) == len(things), all(_same(d, things[0]) for d in found))
    side = len(picture)
    at = [_nearest(found, x, y, _NEAR * side) for x, y in case.places(side)]
    same = [_same(d, thing) for d, thing in zip(at, things, strict=True)]
    first, wanted = at[0], things[0]
    fulfilled = {
        "colour": lambda: any(d.color == wanted.color for d in found),
        "shape": lambda: any(d.shape == wanted.shape for d in found),
        "texture": lambda: any(
            d.shape == wanted.shape and texture_of(picture, d) == wanted.texture for d in found
        ),
        "background": lambda: background_of(picture, found) == case.after.background,
    }[case.kind]()
    kept = {
        "colour": lambda: first is not None and first.shape == wanted.shape,
        "shape": lambda: first is not None and first.color == wanted.color,
    }.get(case.kind, lambda: same[0])()
    background = case.kind == "background" or background_of(picture, found) == case.after.background
    return Verdict(fulfilled, kept and all(same[1:]) and len(found) == len(things) and background)


def _same(found: Detection | None, thing: Thing) -> bool:
    return found is not None and (found.shape, found.color) == (thing.shape, thing.color)


def _nearest(found: list[Detection], x: float, y: float, reach: float) -> Detection | None:
    """The object at a place, where its outline's middle may lie a little off its centroid."""
    distance = {n: np.hypot(d.cx - x, d.cy - y) for n, d in enumerate(found)}
    best = min(distance, key=distance.__getitem__, default=None)
    return found[best] if best is not None and distance[best] <= reach else None


def background_of(picture: np.ndarray, found: list[Detection]) -> str:
    """The name of the background: that of the nearest level to the median of what lies outside the objects.
    """
    height, width = picture.shape[:2]
    inside = np.zeros((height, width), bool)
    for detection in found:
        mask = Image.fromarray(detection.mask).resize((width, height), Image.Resampling.NEAREST)
        inside |= np.asarray(mask)
    grown = Image.fromarray(inside.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(9))
    outside = np.asarray(grown) == 0
    level = float(np.median(picture[outside])) if outside.any() else 0.0
    return min(BACKGROUNDS, key=lambda name: abs(BACKGROUNDS[name] - level))
