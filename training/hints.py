"""Hints: losses beside the true one that say early what binding takes: words their things, tokens their
places.

Without them both stayed faint for thousands of steps: swapping the colours of two things in a caption
changed the text features by a tenth and the loss not at all, and left and right tokens of a 2 x 2 scale
were 93 % alike.  The heads are thrown away after training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comfy_moss.benchmarks.rendering import CHECK_HEIGHT, PERIOD
from comfy_moss.benchmarks.world import COLORS, MAX_OBJECTS, NUMBERS, SHAPES, TEXTURES, Scene, words
from comfy_moss.model.rope import grid_positions
from comfy_moss.model.schedule import PRESETS, Positions, Schedule

PLACES = ("alone", "left", "right", "above", "below", "many", "last")
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_KINDS = (len(SHAPES), len(COLORS), len(TEXTURES), MAX_OBJECTS, len(PLACES))
_NOUNS = {name: n for n, shape in enumerate(SHAPES) for name in (shape, f"{shape}s", f"{shape}es")}
_BEFORE_NOUN = {*COLORS, *TEXTURES, *NUMBERS.values(), "an"}
_NONE = -100  # a word that tells of no thing
_CELL = 4.0  # pixels a rotary position; at it textures repeat down, across, and checks down
_TURNS = 2 * torch.pi * _CELL * torch.tensor([[1 / PERIOD, 0.0], [0.0, 1 / PERIOD], [1 / CHECK_HEIGHT, 0.0]])
PLACE, PHASE = 0.35, 0.2  # share of a token's length that tells its place (at the border), and each phase
WORD_WEIGHT, PLACE_WEIGHT = 0.3, 0.5


def places(scene: Scene) -> list[str]:
    """Where each group of a square picture lies."""
    if len(scene.groups) == 1:
        return ["alone"]
    if scene.groups[0].count > 1:
        return ["many", "last"]
    first = scene.relation or "left"
    return [first, _OPPOSITE[first]]


def word_labels(caption: str, scene: Scene) -> list[tuple[int, ...]]:
    """For every word: shape, colour, texture, number and place of the thing that it speaks of, as numbers."""
    found = words(caption)
    labels = [(_NONE,) * len(_KINDS)] * len(found)
    nouns = [n for n, word in enumerate(found) if word in _NOUNS]
    for n, group, place in zip(nouns, scene.groups, places(scene), strict=True):
        thing = group.thing
        color, texture = list(COLORS).index(thing.color), TEXTURES.index(thing.texture)
        label = (SHAPES.index(thing.shape), color, texture, group.count - 1, PLACES.index(place))
        while n >= 0 and (labels[n][0] == _NONE) and (found[n] in _BEFORE_NOUN or found[n] in _NOUNS):
            labels[n] = label
            n -= 1
    return labels


class Hints(nn.Module):
    """A linear reading of every word, and fixed directions along which tokens say where they are."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(text_width, kinds) for kinds in _KINDS)
        generator = torch.Generator().manual_seed(0)
        random = torch.cat([torch.randn(width, n, generator=generator) for n in (2, 2 * len(_TURNS))], dim=1)
        place, phase = torch.linalg.qr(random).Q.split([2, 2 * len(_TURNS)], dim=1)
        self.register_buffer("place", place)
        self.register_buffer("phase", phase)
        random = torch.cat([random, torch.randn(width, 2 * len(_TURNS), generator=generator)], dim=1)
        self.register_buffer("fine_phase", torch.linalg.qr(random).Q[:, -2 * len(_TURNS) :])

    def forward(self, features: Tensor, captions: Sequence[str | None], scenes: Sequence[Scene]) -> Tensor:
        """Mean cross-entropy in nats of what words tell; features (B, T, Ct) of the text encoder."""
        labels = torch.full((*features.shape[:2], len(_KINDS)), _NONE)
        for n, (caption, scene) in enumerate(zip(captions, scenes, strict=True)):
            if caption is not None:
                row = torch.tensor(word_labels(caption, scene))
                labels[n, : len(row)] = row
        flat = labels.flatten(0, 1)
        known = flat[:, 0] != _NONE
        losses = [
            F.cross_entropy(head(features.flatten(0, 1)[known]), flat[known, n])
            for n, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()

    def places(self, tokens: Tensor, schedule: Schedule, scales: Sequence[int]) -> Tensor:
        """Mean squared errors, 0 to about 1, of where tokens (B, N, C) of these scales say that they lie.

        Their place is told for the centre of a token, and for its corner, where the rotary position is, the
        phase of every texture's waves; in 1M also of those of half the size.  Only its last scales can show
        these, but all tell them: it is learnt where it costs little.  A grid of one token tells nothing.
        """
        positions = Positions.concat([Positions.of_scale(schedule, n) for n in scales])
        grids = torch.tensor(schedule.grids)[positions.scale[0]]
        some = grids[:, 0] > 1
        at = (torch.stack([positions.row[0], positions.col[0]], dim=1) + 0.5) * 2 / grids - 1
        turns = torch.stack(grid_positions(positions, schedule), dim=-1)[0] @ _TURNS.T
        told = tokens[:, some]
        loss = _told(told, self.place, at[some], PLACE) + _told(told, self.phase, _waves(turns[some]), PHASE)
        if len(schedule) < PRESETS["1M"]:
            return loss
        return loss + _told(told, self.fine_phase, _waves(2 * turns[some]), PHASE)


def _waves(turns: Tensor) -> Tensor:
    return torch.cat([turns.cos(), turns.sin()], dim=1)


def _told(tokens: Tensor, directions: Tensor, true: Tensor, amplitude: float) -> Tensor:
    unit = F.layer_norm(tokens, tokens.shape[-1:]) / tokens.shape[-1] ** 0.5
    return F.mse_loss(unit @ directions / amplitude, true.expand(len(tokens), -1, -1))
