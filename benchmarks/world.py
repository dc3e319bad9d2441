"""A captioned world of shapes: what may be in a picture of it, its words, and such words read back.

A scene holds one to four large flat shapes on a neutral background. It is small enough for a tiny
text-to-image model to learn and strict enough for a program to check, so that counting, colours, positions
and colour attribution can be scored without any learned detector. `rendering` draws
scenes.
"""

from __future__ import annotations

import re
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


# --- words --------------------------------------------------------------------------------------------------

_PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
_RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_OPENINGS = ("a photo of", "a picture of", "an image of", "a drawing of")
_EXTRA_WORDS = ("an", "the", "with", "in", "to", "of", "one", ",", ".")


def _noun_phrase(group: Group, color_first: bool = True) -> str:
    thing = group.thing
    adjectives = [thing.color, thing.texture if thing.texture != "plain" else None]
    words = [word for word in (adjectives if color_first else adjectives[::-1]) if word]
    words.append(thing.shape if group.count == 1 else _PLURALS[thing.shape])
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article if group.count == 1 else NUMBERS[group.count], *words])


def _background_phrase(scene: Scene, say_plain: bool = True) -> str:
    style = "" if scene.style == "plain" and not say_plain else f"{scene.style} "
    return f" on a {style}{scene.background} background"


def canonical_caption(scene: Scene) -> str:
    """Everything the scene fixes, always in the same words. `parse` inverts it exactly."""
    link = "and" if scene.relation is None else _RELATION_WORDS[scene.relation][0]
    nouns = f" {link} ".join(_noun_phrase(group) for group in scene.groups)
    return f"a photo of {nouns}" + ("" if scene.background is None else _background_phrase(scene))


def _forget(group: Group, rng: np.random.Generator) -> Group:
    """A group whose colour may go unsaid, if it is the usual one of its shape."""
    usual = group.thing.color == USUAL_COLORS[group.thing.shape]
    return replace(group, thing=replace(group.thing, color=None)) if usual and rng.random() < 0.7 else group


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A lower-case caption with random wording.

    Half open with "a photo of", 60 % name the background, and most leave out a colour that is usual for its
    shape. What it does say is always true of the scene, and a texture that goes unsaid is plain.
    """
    groups = [_forget(group, rng) for group in scene.groups]
    link = "and" if scene.relation is None else pick(rng, _RELATION_WORDS[scene.relation])
    text = f" {link} ".join(_noun_phrase(group, rng.random() < 0.75) for group in groups)
    opening = rng.random()
    if opening < 0.5:
        text = f"{_OPENINGS[0]} {text}"
    elif opening < 0.6:
        text = f"{pick(rng, _OPENINGS[1:])} {text}"
    if scene.background is not None and rng.random() < 0.6:
        text += _background_phrase(scene, rng.random() < 0.6)
    return text


def _vocabulary() -> tuple[str, ...]:
    phrases = [
        *SHAPES,
        *_PLURALS.values(),
        *COLORS,
        *TEXTURES,
        *BACKGROUNDS,
        *STYLES,
        *NUMBERS.values(),
        *_OPENINGS,
    ]
    phrases += [phrase for choices in _RELATION_WORDS.values() for phrase in choices]
    phrases += ["and on background", *_EXTRA_WORDS]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


VOCABULARY: tuple[str, ...] = _vocabulary()
"""Every word and punctuation mark that a prompt may hold, sorted."""


def words(prompt: str) -> list[str]:
    """A prompt split into lower-case words, with each punctuation mark as a token of its own."""
    return re.findall(r"\w+|[^\w\s]", prompt.lower())


_COUNTS = {"a": 1, "an": 1, "one": 1, "the": 1, **{word: count for count, word in NUMBERS.items()}}
_NOUN_PATTERN = "({}) ((?:(?:{}) )*)({})".format(
    "|".join(_COUNTS), "|".join([*COLORS, *TEXTURES]), "|".join([*_PLURALS.values(), *SHAPES])
)
_LINKS = {"and": None, "with": None} | {
    phrase: key for key, choices in _RELATION_WORDS.items() for phrase in choices
}
_PROMPT = re.compile(
    "(?:(?:an?|the) (?:photo|picture|image|drawing) of )?"
    + f"{_NOUN_PATTERN}(?: ({'|'.join(_LINKS)}) {_NOUN_PATTERN})?"
    + f"(?: (?:on|in|with) (?:a|the) (?:({'|'.join(STYLES)}) )?({'|'.join(BACKGROUNDS)}) background)?"
)


def _parse_group(number: str, adjectives: str, noun: str) -> Group:
    colors = [word for word in adjectives.split() if word in COLORS]
    textures = [word for word in adjectives.split() if word in TEXTURES]
    count = _COUNTS[number]
    shape = next(shape for shape in SHAPES if noun in (shape, _PLURALS[shape]))
    if len(colors) > 1 or len(textures) > 1 or (noun == shape) != (count == 1):
        raise ValueError(f"not a noun phrase: {number} {adjectives}{noun}")
    return Group(count, Thing(shape, *(colors or [None]), *(textures or ["plain"])))


def parse(prompt: str) -> Scene | None:
    """The scene that a prompt describes, or None where the prompt is outside the captions' grammar.

    A colour and a background that go unsaid stay None (open); an unsaid texture or style is "plain". Case and
    punctuation do not matter.
    """
    match = _PROMPT.fullmatch(" ".join(word for word in words(prompt) if word not in ",."))
    if match is None:
        return None
    first, link, second, (style, background) = (
        match.group(1, 2, 3),
        match[4],
        match.group(5, 6, 7),
        match.group(8, 9),
    )
    try:
        groups = [_parse_group(*first)] + ([_parse_group(*second)] if link else [])
        return Scene(tuple(groups), _LINKS.get(link), background, (style or "plain") if background else None)
    except ValueError:
        return None
