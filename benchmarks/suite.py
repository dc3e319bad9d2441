"""A GenEval-like suite of prompts over the shapes world: six tasks, scored by the detector."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from .world import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    STYLES,
    TEXTURES,
    Group,
    Scene,
    Thing,
    canonical_caption,
    complete,
)

TASKS: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_COLORED = ("colors", "color_attr")
_PAIRED = ("two_object", "position", "color_attr")
_PLAIN_TEXTURE = 0.4
_HELD_OUT = 5  # one combination in five is for evaluation only


@dataclass(frozen=True)
class Case:
    """A prompt, the task it belongs to and the scene it describes; the scene leaves open what the prompt
    does.
    """

    task: str
    prompt: str
    scene: Scene


def held_out(scene: Scene) -> bool:
    """Whether a scene is kept for evaluation: a model that is evaluated here must not have been trained on
    it.

    What counts is which things stand on which background, in their usual colours where none is named, not
    where they stand: "a star left of a heart" and "a heart and a star" are held out together.
    """
    whole = complete(scene, np.random.default_rng(0))
    groups = tuple(sorted(whole.groups, key=repr))
    combination = canonical_caption(replace(whole, groups=groups, relation=None))
    return int.from_bytes(hashlib.sha256(combination.encode()).digest()[:8], "big") % _HELD_OUT == 0


def _texture(rng: np.random.Generator) -> str:
    return "plain" if rng.random() < _PLAIN_TEXTURE else TEXTURES[int(rng.integers(1, len(TEXTURES)))]


def _scene(task: str, index: int, rng: np.random.Generator) -> Scene:
    """Case `index` of a task. Shapes, counts and relations take turns, so that each is tested equally often,
    and each count and relation with every shape.
    """
    turn = index + index // len(SHAPES)
    shapes = SHAPES[index % len(SHAPES)], SHAPES[(index + int(rng.integers(1, len(SHAPES)))) % len(SHAPES)]
    colors = rng.permutation(list(COLORS))[:2].tolist() if task in _COLORED else [None, None]
    count = 2 + turn % 3 if task == "counting" else 1
    groups = [Group(count, Thing(shapes[0], colors[0], _texture(rng)))]
    if task in _PAIRED:
        groups.append(Group(1, Thing(shapes[1], colors[1])))
    relation = RELATIONS[turn % len(RELATIONS)] if task == "position" else None
    background, style = (
        list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))],
        STYLES[int(rng.integers(len(STYLES)))],
    )
    return Scene(tuple(groups), relation, background, style)


_PATIENCE = (
    400  # scenes to look at for one that is free; of each shape there are a dozen single ones or fewer
)


def _held_out_scene(task: str, index: int, rng: np.random.Generator, taken: Collection[str]) -> Scene:
    """Case `index`, or the next one that has a scene whose prompt is not taken."""
    tries = 0
    while not held_out(scene := _scene(task, index, rng)) or canonical_caption(scene) in taken:
        tries += 1  # every shape, count and relation has held-out scenes
        index += bool(taken) and tries % _PATIENCE == 0
    return scene


def prompts(per_task: int, seed: int, taken: Collection[str] = ()) -> list[Case]:
    """`per_task` cases of each of the six tasks, the same for the same seed, all of them held out from
    training.

    As in GenEval, prompts name colours only in the two colour tasks. Texture and background are named
    throughout, so that a picture can be compared with another one of the same prompt.

    Args:
        taken: prompts that must not be among them.
    """
    rng = np.random.default_rng(seed)
    scenes = [(task, _held_out_scene(task, index, rng, taken)) for task in TASKS for index in range(per_task)]
    return [Case(task, canonical_caption(scene), scene) for task, scene in scenes]


def in_turn(cases: list[Case]) -> tuple[Case, ...]:
    """Cases one of each task after another; `cases` holds as many of each."""
    tasks = [[case for case in cases if case.task == task] for task in TASKS]
    return tuple(case for group in zip(*tasks, strict=True) for case in group)


def partners(cases: tuple[Case, ...], seed: int) -> tuple[Case, ...]:
    """For every case another one, drawn at random, no two the same."""
    circle = np.random.default_rng(seed).permutation(len(cases)).tolist()
    follower = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return tuple(cases[follower[n]] for n in range(len(cases)))
