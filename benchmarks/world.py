"""A captioned world of shapes: what may be in a picture of it.

A scene holds one to four large flat shapes on a neutral background. It is small enough for a tiny
text-to-image model to learn and strict enough for a program to check, so that counting, colours, positions
and colour attribution can be scored without any learned detector. `rendering` draws scenes and `captions`
words them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (228, 44, 62),
    "orange": (248, 132, 30),
    "yellow": (252, 222, 50),
    "green": (46, 178, 92),
    "blue": (48, 106, 232),
    "purple": (150, 70, 206),
}
# The colour of a shape whose colour goes unsaid: a model that draws bits independently would mix colours.
USUAL_COLORS: dict[str, str] = dict(
    zip(SHAPES, ("red", "blue", "green", "yellow", "purple", "orange"), strict=True)
)
TEXTURES: tuple[str, ...] = ("plain", "striped", "checkered", "dotted")
BACKGROUNDS: dict[str, float] = {"white": 234.0, "grey": 150.0, "black": 40.0}
STYLES: tuple[str, ...] = ("plain", "gradient", "striped")
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")
NUMBERS: dict[int, str] = {1: "a", 2: "two", 3: "three", 4: "four"}
MAX_OBJECTS = 4


@dataclass(frozen=True)
class Thing:
    """What an object is. `color` is None where a prompt leaves it open."""

    shape: str
    color: str | None = None
    texture: str = "plain"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.texture not in TEXTURES or (self.color or "red") not in COLORS:
            raise ValueError(f"not in the shapes world: {self.color} {self.texture} {self.shape}")


@dataclass(frozen=True)
class Group:
    """`count` (1 to 4) equal objects."""

    count: int
    thing: Thing

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_OBJECTS:
            raise ValueError(f"a group holds 1 to {MAX_OBJECTS} objects, not {self.count}")


@dataclass(frozen=True)
class Scene:
    """One or two groups, at most four objects in all, on a background.

    `relation` says where the first object lies, seen from the second ("left": the first is left of the
    second); it needs two groups of one object each. `background` and `style` are both None where a prompt
    leaves them open. Raises ValueError for anything else.
    """

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None
    style: str | None = None

    def __post_init__(self) -> None:
        counts = [group.count for group in self.groups]
        if not 1 <= len(counts) <= 2 or sum(counts) > MAX_OBJECTS:
            raise ValueError(
                f"a scene holds one or two groups and at most {MAX_OBJECTS} objects, not {counts}"
            )
        if self.relation is not None and (self.relation not in RELATIONS or counts != [1, 1]):
            raise ValueError(f"relation {self.relation!r} needs two single objects and one of {RELATIONS}")
        if (self.background is None) != (self.style is None):
            raise ValueError("background and style are given together or not at all")
        if self.background is not None and (self.background not in BACKGROUNDS or self.style not in STYLES):
            raise ValueError(f"unknown background: {self.style} {self.background}")

    @property
    def things(self) -> tuple[Thing, ...]:
        """One entry per object, in the order in which the caption names them."""
        return tuple(group.thing for group in self.groups for _ in range(group.count))


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]


def _sample_thing(rng: np.random.Generator, plain: float, other: Thing | None = None) -> Thing:
    """A thing which differs from `other` in both shape and colour, so that one word tells them apart."""
    shape = pick(rng, [name for name in SHAPES if other is None or name != other.shape])
    color = pick(rng, [name for name in COLORS if other is None or name != other.color])
    return Thing(shape, color, "plain" if rng.random() < plain else pick(rng, TEXTURES[1:]))


def _sample_background(rng: np.random.Generator, plain: float) -> tuple[str, str]:
    return pick(rng, list(BACKGROUNDS)), "plain" if rng.random() < plain else pick(rng, STYLES[1:])


def sample_scene(
    rng: np.random.Generator, plain_texture: float = 0.45, plain_background: float = 0.55
) -> Scene:
    """A random scene, complete in every attribute.

    35 % hold one object, 30 % two different ones (half of them with a relation), 22 % two to four equal
    ones and 13 % two or three equal ones and another. `plain_texture` and `plain_background` are
    probabilities.
    """
    first, relation, kind = _sample_thing(rng, plain_texture), None, rng.random()
    if kind < 0.35:
        groups = [Group(1, first)]
    elif kind < 0.65:
        groups = [Group(1, first), Group(1, _sample_thing(rng, plain_texture, first))]
        relation = pick(rng, RELATIONS) if rng.random() < 0.5 else None
    elif kind < 0.87:
        groups = [Group(int(rng.integers(2, 5)), first)]
    else:
        groups = [Group(int(rng.integers(2, 4)), first), Group(1, _sample_thing(rng, plain_texture, first))]
    return Scene(tuple(groups), relation, *_sample_background(rng, plain_background))


def complete(scene: Scene, rng: np.random.Generator) -> Scene:
    """`scene` with nothing left open.

    An open colour becomes the shape's usual one (or, where that is in use, another), an open background a
    random one.
    """
    used = {group.thing.color for group in scene.groups}
    groups = []
    for group in scene.groups:
        usual = USUAL_COLORS[group.thing.shape]
        free = [usual] if usual not in used else [name for name in COLORS if name not in used]
        color = group.thing.color or pick(rng, free)
        used.add(color)
        groups.append(replace(group, thing=replace(group.thing, color=color)))
    background, style = scene.background, scene.style
    if background is None:
        background, style = _sample_background(rng, 0.55)
    return Scene(tuple(groups), scene.relation, background, style)
