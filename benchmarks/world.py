"""A procedurally rendered, captioned world of shapes.

A scene holds one to four large flat shapes on a neutral background. It is small enough for a tiny text-to-image
model to learn and strict enough for a program to check, so that counting, colours, positions and colour
attribution can be scored without any learned detector. Nothing in a picture is random per pixel: what a caption
leaves open is a few pixels of jitter in position and size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (228, 44, 62),
    "orange": (248, 132, 30),
    "yellow": (252, 222, 50),
    "green": (46, 178, 92),
    "blue": (48, 106, 232),
    "purple": (150, 70, 206),
}
# The colour of a shape whose colour goes unsaid: a model that draws bits independently would otherwise mix colours.
USUAL_COLORS: dict[str, str] = dict(zip(SHAPES, ("red", "blue", "green", "yellow", "purple", "orange"), strict=True))
TEXTURES: tuple[str, ...] = ("plain", "striped", "checkered", "dotted")
BACKGROUNDS: dict[str, float] = {"white": 234.0, "grey": 150.0, "black": 40.0}
STYLES: tuple[str, ...] = ("plain", "gradient", "striped")
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")
NUMBERS: dict[int, str] = {1: "a", 2: "two", 3: "three", 4: "four"}
MAX_OBJECTS = 4

_PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
_RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_OPENINGS = ("a photo of", "a picture of", "an image of", "a drawing of")
_EXTRA_WORDS = ("an", "the", "with", "in", "to", "of", "one", ",", ".")

# Lengths below are pixels of a picture whose shorter side is 256; everything scales with that side.
_REFERENCE = 256.0
_SUPERSAMPLING = 2
_DARKENING = 0.5
# Textures lie still in the picture and repeat with the fastest rotary waves of two positions a token (stride 8), so that a token
# can know where in one it lies; checks, down their columns, with twice the next wave.  A 16 x 16 grid cannot carry them.
PERIOD = 8 * np.pi
CHECK_HEIGHT = PERIOD / 2 * 10**0.5
# In pictures from this side on, every texture is mixed with itself at half its size, which a 32 x 32 grid cannot carry.
FINE_SIDE = 512
_FINE_DARKENING = 0.6
_RADIUS = {1: 72.0, 2: 50.0, 3: 44.0, 4: 44.0}
_OFFSET = 62.0
_POSITION_JITTER = 5.0
_RADIUS_JITTER = 3.0
_ROW_ASPECT = {3: 1.4, 4: 2.2}
_MAX_SPREAD = 1.5


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

    `relation` says where the first object lies, seen from the second ("left": the first is left of the second);
    it needs two groups of one object each. `background` and `style` are both None where a prompt leaves them open.
    Raises ValueError for anything else.
    """

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None
    style: str | None = None

    def __post_init__(self) -> None:
        counts = [group.count for group in self.groups]
        if not 1 <= len(counts) <= 2 or sum(counts) > MAX_OBJECTS:
            raise ValueError(f"a scene holds one or two groups and at most {MAX_OBJECTS} objects, not {counts}")
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


# --- sampling ---------------------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _sample_thing(rng: np.random.Generator, plain: float, other: Thing | None = None) -> Thing:
    """A thing which differs from `other` in both shape and colour, so that one word tells them apart."""
    shape = _pick(rng, [name for name in SHAPES if other is None or name != other.shape])
    color = _pick(rng, [name for name in COLORS if other is None or name != other.color])
    return Thing(shape, color, "plain" if rng.random() < plain else _pick(rng, TEXTURES[1:]))


def _sample_background(rng: np.random.Generator, plain: float) -> tuple[str, str]:
    return _pick(rng, list(BACKGROUNDS)), "plain" if rng.random() < plain else _pick(rng, STYLES[1:])


def sample_scene(rng: np.random.Generator, plain_texture: float = 0.45, plain_background: float = 0.55) -> Scene:
    """A random scene, complete in every attribute.

    35 % hold one object, 30 % two different ones (half of them with a relation), 22 % two to four equal ones and
    13 % two or three equal ones and another. `plain_texture` and `plain_background` are probabilities.
    """
    first, relation, kind = _sample_thing(rng, plain_texture), None, rng.random()
    if kind < 0.35:
        groups = [Group(1, first)]
    elif kind < 0.65:
        groups = [Group(1, first), Group(1, _sample_thing(rng, plain_texture, first))]
        relation = _pick(rng, RELATIONS) if rng.random() < 0.5 else None
    elif kind < 0.87:
        groups = [Group(int(rng.integers(2, 5)), first)]
    else:
        groups = [Group(int(rng.integers(2, 4)), first), Group(1, _sample_thing(rng, plain_texture, first))]
    return Scene(tuple(groups), relation, *_sample_background(rng, plain_background))


def complete(scene: Scene, rng: np.random.Generator) -> Scene:
    """`scene` with every open colour the shape's usual one (or, where that is in use, another), and an open background
    drawn at random."""
    used = {group.thing.color for group in scene.groups}
    groups = []
    for group in scene.groups:
        usual = USUAL_COLORS[group.thing.shape]
        free = [usual] if usual not in used else [name for name in COLORS if name not in used]
        color = group.thing.color or _pick(rng, free)
        used.add(color)
        groups.append(replace(group, thing=replace(group.thing, color=color)))
    background, style = scene.background, scene.style
    if background is None:
        background, style = _sample_background(rng, 0.55)
    return Scene(tuple(groups), scene.relation, background, style)


# --- rendering --------------------------------------------------------------------------------------------------


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
        turns = [np.array([(np.cos(a), np.sin(a)), (-np.sin(a), np.cos(a))]) for a in np.arange(4) * np.pi / 2]
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
    """Antialiased coverage, float32 (height, width) in [0, 1], of a shape at (cx, cy) with `radius`, in pixels."""
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
    coarse = np.asarray(_texture(name, x, y, unit), np.float32)
    if unit < FINE_SIDE / _REFERENCE:
        return 1 - _DARKENING * coarse
    return 1 - _FINE_DARKENING * (coarse + np.asarray(_texture(name, x, y, unit / 2), np.float32)) / 2


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
    return np.clip(7.6 * unit - np.hypot(*((axis + period / 2) % period - period / 2 for axis in (x, y))) + 0.5, 0, 1)


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


def layout(scene: Scene, rng: np.random.Generator, height: int, width: int) -> list[tuple[float, float, float]]:
    """Centre x, centre y and radius in pixels of each of `scene.things`: canonical places with a small jitter."""
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

    Heights and widths of 144 to 448 pixels keep all objects apart from each other and from the border. What the
    scene leaves open is drawn from `rng`, as is the jitter of the layout.
    """
    scene = complete(scene, rng)
    unit = min(height, width) / _REFERENCE
    image = _render_background(scene, height, width, unit)
    for thing, (cx, cy, radius) in zip(scene.things, layout(scene, rng, height, width), strict=True):
        _paint(image, thing, cx, cy, radius, unit)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


# --- captions ---------------------------------------------------------------------------------------------------


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
    """A lower-case caption with random wording: half open with "a photo of", 60 % name the background, and most leave
    out a colour that is usual for its shape. What it does say is always true of the scene, and a texture that goes unsaid
    is plain."""
    groups = [_forget(group, rng) for group in scene.groups]
    link = "and" if scene.relation is None else _pick(rng, _RELATION_WORDS[scene.relation])
    text = f" {link} ".join(_noun_phrase(group, rng.random() < 0.75) for group in groups)
    opening = rng.random()
    if opening < 0.5:
        text = f"{_OPENINGS[0]} {text}"
    elif opening < 0.6:
        text = f"{_pick(rng, _OPENINGS[1:])} {text}"
    if scene.background is not None and rng.random() < 0.6:
        text += _background_phrase(scene, rng.random() < 0.6)
    return text


def _vocabulary() -> tuple[str, ...]:
    phrases = [*SHAPES, *_PLURALS.values(), *COLORS, *TEXTURES, *BACKGROUNDS, *STYLES, *NUMBERS.values(), *_OPENINGS]
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
_LINKS = {"and": None, "with": None} | {phrase: key for key, choices in _RELATION_WORDS.items() for phrase in choices}
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
    first, link, second, (style, background) = match.group(1, 2, 3), match[4], match.group(5, 6, 7), match.group(8, 9)
    try:
        groups = [_parse_group(*first)] + ([_parse_group(*second)] if link else [])
        return Scene(tuple(groups), _LINKS.get(link), background, (style or "plain") if background else None)
    except ValueError:
        return None
