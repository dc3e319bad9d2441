"""The paper's way to bounds: a top-down binary search of those of MoSs-k, one bound after the other.

The paper names a top-down binary search over the metric of a benchmark and prints what it found, without
details. Ours starts where nothing is lost: all bounds at 100 percent, so that every token is redrawn at the
finest scale.  Then it lowers one bound after the other as far as the metric allows.  Each lowered bound hands
tokens to a coarser scale or back to the draft, so each makes the picture cheaper; since the others stay,
bounds always fall from coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from comfy_moss.model.schedule import Schedule
from comfy_moss.pipeline.dispatch import RefinePass

from .analysis import Interval, mean, weights

ORDERS = ("finest", "coarsest")  # which bound is searched first
_HALVINGS = 60
ROUNDS = 7  # of the search under a budget: the tolerance is met within a hundredth
Bounds = tuple[float, ...]
# bounds in percent, coarsest refine scale first -> value, higher is better
Metric = Callable[[Bounds], float]


@dataclass(frozen=True)
class TopDown:
    """How bounds are searched.

    Attributes:
        k: scales that are refined.
        tolerance: how far the metric may fall below that of all tokens redrawn at the finest scale, >= 0; the
            bound searched as the i-th of k may use up to i/k of it, so that the first does not take all.
        step: bounds are multiples of it, percent, in (0, 100].
        order: which bound is searched first: "finest" decides first how few tokens need the finest scale,
            "coarsest" first how few tokens need to be redrawn at all.
    """

    k: int
    tolerance: float
    step: float = 5.0
    order: str = "finest"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"at least 1 scale must be refined, got k = {self.k}")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"the tolerance must be 0 or more, got {self.tolerance}")
        if not 0 < self.step <= 100:
            raise ValueError(f"the step must be a percentage above 0, got {self.step}")
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r} is unknown; choose one of {', '.join(ORDERS)}")

    @property
    def grid(self) -> tuple[float, ...]:
        """The values a bound may take: 0, step, 2 step, ... and 100."""
        return tuple(self.step * n for n in range(math.ceil(100 / self.step))) + (100.0,)

    @property
    def trials(self) -> int:
        """How many bounds are tried at most."""
        return 1 + self.k * math.ceil(math.log2(len(self.grid)))


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        reference: value of the metric with all bounds at 100.
    """

    bounds: Bounds
    value: float
    reference: float


class Measured(dict[Bounds, float]):
    """Values by bounds, each measured once.

    Raises:
        ValueError: the metric returned something that is not a finite number.
    """

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, bounds: Bounds) -> float:
        value = float(self._metric(bounds))
        if not math.isfinite(value):
            text = ", ".join(f"{b:g}" for b in bounds)
            raise ValueError(
                f"the metric returned {value} for the bounds [{text}]; it must return a finite number"
            )
        self[bounds] = value
        return value


def search(measured: Measured, config: TopDown) -> Found:
    """Search the bounds that spend the fewest tokens while the metric stays within the tolerance.

    Exact where the metric never rises as a bound falls; where it wavers, what is found still is within the
    tolerance.
    """
    bounds = (100.0,) * config.k
    reference = measured[bounds]
    searched = range(config.k) if config.order == "coarsest" else reversed(range(config.k))
    for number, n in enumerate(searched, 1):
        limit = reference - config.tolerance * number / config.k
        bounds = _lowest(_lowered(bounds, n, config), lambda b, limit=limit: measured[b] >= limit)
    return Found(bounds, measured[bounds], reference)


def search_within(measured: Measured, config: TopDown, tokens: int, spend: Callable[[Bounds], int]) -> Found:
    """The best bounds that spend at most so many tokens: the search above with its tolerance bisected, so
    that it ends near them; of all that was tried on the way, the best that fits.

    Args:
        config: its tolerance is not used.
        spend: bounds -> tokens.
    """
    everything, nothing = (100.0,) * config.k, (0.0,) * config.k
    whole = measured[everything]
    if spend(everything) <= tokens:
        return Found(everything, whole, whole)
    low, high = 0.0, config.k * max(0.0, whole - measured[nothing])
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        found = search(measured, replace(config, tolerance=middle))
        low, high = (low, middle) if spend(found.bounds) <= tokens else (middle, high)
    fitting = [b for b in measured if spend(b) <= tokens]
    best = max(fitting, key=lambda b: (measured[b], -spend(b)))
    return Found(best, measured[best], whole)


def _lowered(bounds: Bounds, n: int, config: TopDown) -> list[Bounds]:
    """The bounds with one of them lowered, the lowest first and the unchanged last.

    The finest first: down to its finer neighbour, which is decided.  The coarsest first: its finer
        neighbours, which
    are not decided yet, are lowered with it.
    """
    if config.order == "coarsest":
        return [bounds[:n] + (x,) * (config.k - n) for x in config.grid if x <= bounds[n]]
    least = bounds[n + 1] if n + 1 < config.k else 0.0
    return [bounds[:n] + (x,) + bounds[n + 1 :] for x in config.grid if least <= x <= bounds[n]]


def _lowest(candidates: list[Bounds], good: Callable[[Bounds], bool]) -> Bounds:
    """The first good candidate by bisection; the last one is known to be good."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(candidates[middle]) else (middle + 1, high)
    return candidates[high]


# --- what was found, compared at equal tokens ---------------------------------------------------------------


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


def spend(schedule: Schedule, bounds: Bounds) -> int:
    """Refine tokens a picture."""
    return sum(RefinePass.of_last(bounds).counts(schedule))


def at_tokens(bounds: Bounds, schedule: Schedule, tokens: int) -> Bounds:
    """The bounds times one factor, but never above 100, so that they spend at most that many tokens, nearly
    as many.

    Where all bounds at their limit spend fewer, that limit.
    """
    low, high = 0.0, 100 / max(min(b for b in bounds if b > 0), 1e-3) if any(bounds) else 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = spend(schedule, _times(bounds, middle)) <= tokens
        low, high = (middle, high) if fits else (low, middle)
    return _times(bounds, low)


def _times(bounds: Bounds, factor: float) -> Bounds:
    return tuple(min(100.0, b * factor) for b in bounds)


def random_bounds(k: int, schedule: Schedule, tokens: int, count: int, seed: int = 0) -> list[Bounds]:
    """Bounds drawn at random and brought to that number of tokens: the chance rivals of a search."""
    rng = np.random.default_rng(seed)
    drawn = [tuple(sorted(rng.uniform(1, 100, k).tolist(), reverse=True)) for _ in range(count)]
    return [at_tokens(bounds, schedule, tokens) for bounds in drawn]


def rivals_of(found: Bounds, paper: Bounds | None, schedule: Schedule, draws: int) -> dict[str, Bounds]:
    """What a search's result is compared with, the yardstick first, all at its tokens.

    It is the paper's bounds where there are some for this k, else the found ones.
    """
    k, tokens = len(found), spend(schedule, paper or found)
    chance = {f"random {n}": b for n, b in enumerate(random_bounds(k, schedule, tokens, draws), start=1)}
    named = {"paper": paper} if paper else {}
    return named | {"found": at_tokens(found, schedule, tokens)} | chance | {"draft": (0.0,) * k}


def compare(
    values: Callable[[Bounds], np.ndarray],
    schedule: Schedule,
    rivals: Mapping[str, Bounds],
    tasks: Sequence[str],
) -> list[Row]:
    """Measure each; the first is the yardstick.

    Args:
        values: bounds -> one value a picture.
        tasks: of every picture; the bootstrap draws within each of them.
    """
    weight, first, rows = weights(tasks), None, []
    for name, bounds in rivals.items():
        here = values(bounds)
        gain = None if first is None else mean(here - first, weight)
        first = here if first is None else first
        rows.append(Row(name, bounds, spend(schedule, bounds), mean(here, weight), gain))
    return rows
