"""Bounds beside each other at equal tokens, prompt by prompt: what was found, the paper's, and bounds drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from comfy_moss.model.schedule import Schedule
from comfy_moss.pipeline.dispatch import RefinePass

from ..bootstrap import Interval, mean, weights
from .measure import Measure
from .trials import Bounds

_HALVINGS = 60


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        tokens: that the refine step draws a picture.
        value: mean of the metric and its 95 % interval over other draws of prompts.
        gain: over the yardstick, pictures paired; None for the yardstick itself.
    """

    name: str
    bounds: Bounds
    tokens: int
    value: Interval
    gain: Interval | None = None


def at_tokens(bounds: Bounds, schedule: Schedule, tokens: int) -> Bounds:
    """The bounds times one factor, but never above 100, so that they spend at most that many tokens and nearly as many.

    Where all bounds at their limit spend fewer, that limit.
    """
    low, high = 0.0, 100 / max(min(b for b in bounds if b > 0), 1e-3) if any(bounds) else 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        spends = sum(RefinePass.of_last(_times(bounds, middle)).counts(schedule))
        low, high = (middle, high) if spends <= tokens else (low, middle)
    return _times(bounds, low)


def _times(bounds: Bounds, factor: float) -> Bounds:
    return tuple(min(100.0, b * factor) for b in bounds)


def random_bounds(k: int, schedule: Schedule, tokens: int, count: int, seed: int = 0) -> list[Bounds]:
    """Bounds drawn at random and brought to that number of tokens: the chance rivals of a search."""
    rng = np.random.default_rng(seed)
    drawn = [tuple(sorted(rng.uniform(1, 100, k).tolist(), reverse=True)) for _ in range(count)]
    return [at_tokens(bounds, schedule, tokens) for bounds in drawn]


def compare(
    measure: Measure, schedule: Schedule, rivals: Mapping[str, Bounds], tasks: Sequence[str], on_rival: Callable[[int, int], None]
) -> list[Row]:
    """Measure each; the first is the yardstick.

    Args:
        tasks: of every picture; the bootstrap draws within each of them.
        on_rival: told how many of how many are measured; may raise to cancel.
    """
    weight, first, rows = weights(tasks), None, []
    for name, bounds in rivals.items():
        values = measure.values(bounds)
        gain = None if first is None else mean(values - first, weight)
        first = values if first is None else first
        rows.append(Row(name, bounds, sum(RefinePass.of_last(bounds).counts(schedule)), mean(values, weight), gain))
        on_rival(len(rows), len(rivals))
    return rows


def rivals_of(found: Bounds, paper: Bounds | None, schedule: Schedule, draws: int) -> dict[str, Bounds]:
    """What a search's result is compared with, the yardstick first, all at its tokens: the paper's bounds where there are some
    for this k, else the found ones."""
    k = len(found)
    tokens = sum(RefinePass.of_last(paper or found).counts(schedule))
    named = {"paper": paper} if paper else {}
    chance = {f"random {n}": bounds for n, bounds in enumerate(random_bounds(k, schedule, tokens, draws), 1)}
    return named | {"found": at_tokens(found, schedule, tokens)} | chance | {"draft": (0.0,) * k}
