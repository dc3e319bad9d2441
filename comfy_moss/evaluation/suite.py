"""A GenEval-like suite of prompts over the shapes world: six tasks, scored by the detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .detector import score
from .world import BACKGROUNDS, COLORS, RELATIONS, SHAPES, STYLES, TEXTURES, Group, Scene, Thing, canonical_caption

TASKS: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_COLORED = ("colors", "color_attr")
_PAIRED = ("two_object", "position", "color_attr")
_PLAIN_TEXTURE = 0.4


@dataclass(frozen=True)
class Case:
    """A prompt, the task it belongs to and the scene it describes; the scene leaves open what the prompt does."""

    task: str
    prompt: str
    scene: Scene


def _texture(rng: np.random.Generator) -> str:
    return "plain" if rng.random() < _PLAIN_TEXTURE else TEXTURES[int(rng.integers(1, len(TEXTURES)))]


def _scene(task: str, index: int, rng: np.random.Generator) -> Scene:
    """Case `index` of a task. Shapes, counts and relations take turns, so that each is tested equally often."""
    shapes = SHAPES[index % len(SHAPES)], SHAPES[(index + int(rng.integers(1, len(SHAPES)))) % len(SHAPES)]
    colors = rng.permutation(list(COLORS))[:2].tolist() if task in _COLORED else [None, None]
    count = 2 + index % 3 if task == "counting" else 1
    groups = [Group(count, Thing(shapes[0], colors[0], _texture(rng)))]
    if task in _PAIRED:
        groups.append(Group(1, Thing(shapes[1], colors[1])))
    relation = RELATIONS[index % len(RELATIONS)] if task == "position" else None
    background, style = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))], STYLES[int(rng.integers(len(STYLES)))]
    return Scene(tuple(groups), relation, background, style)


def prompts(per_task: int, seed: int) -> list[Case]:
    """`per_task` cases of each of the six tasks, the same for the same seed.

    As in GenEval, prompts name colours only in the two colour tasks. Texture and background are named throughout, so
    that a picture can be compared with another one of the same prompt.
    """
    rng = np.random.default_rng(seed)
    scenes = [(task, _scene(task, index, rng)) for task in TASKS for index in range(per_task)]
    return [Case(task, canonical_caption(scene), scene) for task, scene in scenes]


def score_images(cases: Sequence[Case], images: Sequence[np.ndarray]) -> dict[str, float]:
    """The share (0 to 1) of pictures, each uint8 (H, W, 3), which show their case: by task, and "overall".

    "overall" is GenEval's mean over the tasks present, each with the same weight. Raises ValueError where the numbers
    of cases and pictures differ.
    """
    hits: dict[str, list[bool]] = {}
    for case, image in zip(cases, images, strict=True):
        hits.setdefault(case.task, []).append(score(case.task, case.scene, image))
    shares = {task: float(np.mean(hits[task])) for task in TASKS if task in hits}
    return {**shares, "overall": float(np.mean(list(shares.values()))) if shares else 0.0}
