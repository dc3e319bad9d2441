"""Bootstrap: how far a mean over prompts could move had other prompts been drawn.

Prompts are drawn anew with replacement, within each task, and the same ones for every method: so a difference between two
methods is paired, and the luck of easy prompts cancels out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def weights(tasks: Sequence[str], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """What each prompt weighs in the mean over tasks, (draws + 1, prompts): first as it is, then in every new draw.

    Every row sums to 1; every task has the same share of it, as in GenEval's overall score.
    """
    rng, names = np.random.default_rng(seed), np.array(tasks)
    found = np.zeros((draws + 1, len(names)))
    for task in dict.fromkeys(tasks):
        places = np.flatnonzero(names == task)
        found[0, places] = 1
        found[1:, places] = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), draws)
        found[:, places] /= len(places) * len(set(tasks))
    return found


def mean(values: Sequence[float] | np.ndarray, weight: np.ndarray) -> Interval:
    """The mean over prompts of one value a prompt."""
    return _interval(weight @ np.asarray(values, float))


def ratio(top: Sequence[float] | np.ndarray, bottom: Sequence[float] | np.ndarray, weight: np.ndarray) -> Interval | None:
    """A mean over another one of the same prompts; None where the latter is 0."""
    above, below = (weight @ np.asarray(values, float) for values in (top, bottom))
    drawn = below > 0  # a draw of few prompts may have nothing in it
    return _interval(above[drawn] / below[drawn]) if drawn[0] else None


def _interval(drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(drawn[0]), float(low), float(high))
