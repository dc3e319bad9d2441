"""Words scenes of the shapes world, and reads such words back."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from .world import (
    BACKGROUNDS,
    COLORS,
    NUMBERS,
    SHAPES,
    STYLES,
    TEXTURES,
    USUAL_COLORS,
    Group,
    Scene,
    Thing,
    pick,
)

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
