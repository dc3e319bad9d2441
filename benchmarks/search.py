"""Calibrate: search the bounds of MoSs-k from the top down, one after the other, by bisection.

The paper names a top-down binary search over the metric of a benchmark and prints what it found, without
details.  Ours starts where nothing is lost: all bounds at 100 percent, so that every token is redrawn at the
finest scale.  Then it lowers one bound after the other as far as the metric allows.  Each lowered bound hands
tokens to a coarser scale or back to the draft, so each makes the picture cheaper; since the others stay, the
bounds always fall from coarse to fine.

A metric decides what is found: likeness to dense (dB) alone is best served by coarse scales, which texture
then lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from comfy_moss.images import write_files

from .studio import difference, json_bytes, read_note

FORMAT = 1  # of the file of trials; raised when a key changes its meaning
ORDERS = ("finest", "coarsest")  # which bound is searched first
ROUNDS = 7  # of the search under a budget: the tolerance is met within a hundredth
OnTrial = Callable[[int, int], None]  # (trials done, trials at most); may raise to cancel
Bounds = tuple[float, ...]
# bounds in percent, coarsest refine scale first -> value, higher is better
Metric = Callable[[Bounds], float]

# --- what was tried -----------------------------------------------------------------------------------------


@dataclass
class Trials:
    """Values by bounds.  A file may serve several searches of one metric: other tolerances, steps, orders and
    k.

    Attributes:
        path: written anew after every trial; None = nothing is kept.
        about: what decides the metric's values, for example the model and the prompts.
    """

    path: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    values: dict[Bounds, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, about: Mapping[str, Any]) -> Trials:
        """Go on with a file, or begin one.

        Raises:
            ValueError: the file is no such state, or one of another metric.
            OSError: it cannot be read or written.
        """
        if path is None or not path.exists():
            trials = cls(path, about)
            trials.save()  # so that a file that cannot be written is refused before anything slow
            return trials
        state = read_note(path) or {}
        try:
            values = {tuple(map(float, t["bounds"])): float(t["value"]) for t in state["trials"]}
            known, right = dict(state["about"]), state["format"] == FORMAT
        except (KeyError, TypeError, ValueError):
            right = False
        if not right:
            raise ValueError(
                f"{path} is no state of a calibration by this version; name another file, or take it away"
            )
        if found := difference(known, about):
            raise ValueError(f"{path} was measured with {found}; name another file, or repeat those settings")
        return cls(path, about, values)

    def value(self, bounds: Bounds, metric: Metric) -> float:
        """The metric's value, measured only where it is not known.

        Raises:
            ValueError: the metric returned something that is not a finite number.
        """
        if bounds not in self.values:
            value = float(metric(bounds))
            if not math.isfinite(value):
                text = ", ".join(f"{b:g}" for b in bounds)
                raise ValueError(
                    f"the metric returned {value} for the bounds [{text}]; it must return a finite number"
                )
            self.values[bounds] = value
            self.save()
        return self.values[bounds]

    def save(self) -> None:
        """Write the file anew as a whole.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None:
            return
        trials = [{"bounds": bounds, "value": value} for bounds, value in self.values.items()]
        state = {"format": FORMAT, "about": dict(self.about), "trials": trials}
        write_files({self.path: json_bytes(state)})


# --- the search ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationConfig:
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
class Calibration:
    """What was found.

    Attributes:
        reference: value of the metric with all bounds at 100.
    """

    bounds: Bounds
    value: float
    reference: float


def calibrate(
    metric: Metric, config: CalibrationConfig, trials: Trials | None = None, on_trial: OnTrial | None = None
) -> Calibration:
    """Search the bounds that spend the fewest tokens while the metric stays within the tolerance.

    Exact where the metric never rises as a bound falls; where it wavers, what is found still is within the
    tolerance.

    Args:
        trials: what is known already; grows with every trial.

    Raises:
        ValueError: the metric returned something that is not a finite number.
    """
    trials, done = trials if trials is not None else Trials(), 0

    def value(bounds: Bounds) -> float:
        nonlocal done
        found, done = trials.value(bounds, metric), done + 1
        if on_trial:
            on_trial(done, config.trials)
        return found

    bounds = (100.0,) * config.k
    reference = value(bounds)
    places = range(config.k) if config.order == "coarsest" else reversed(range(config.k))
    for number, place in enumerate(places, 1):
        limit = reference - config.tolerance * number / config.k
        bounds = _lowest(_lowered(bounds, place, config), lambda b, limit=limit: value(b) >= limit)
    return Calibration(bounds, trials.value(bounds, metric), reference)


def calibrate_within(
    metric: Metric,
    config: CalibrationConfig,
    tokens: int,
    spend: Callable[[Bounds], int],
    trials: Trials | None = None,
    on_trial: OnTrial | None = None,
) -> Calibration:
    """The best bounds that spend at most so many tokens: the search above with its tolerance bisected, so
    that it ends near them; of all that was tried on the way, the best that fits.

    Args:
        config: its tolerance is not used.
        spend: bounds -> tokens.

    Raises:
        ValueError: the metric returned something that is not a finite number.
    """
    trials, done, most = trials if trials is not None else Trials(), 0, 2 + ROUNDS * config.trials

    def told(_done: int, _most: int) -> None:
        nonlocal done
        done += 1
        if on_trial:
            on_trial(done, most)

    everything, nothing = (100.0,) * config.k, (0.0,) * config.k
    whole, least = trials.value(everything, metric), trials.value(nothing, metric)
    if spend(everything) <= tokens:
        return Calibration(everything, whole, whole)
    low, high = 0.0, config.k * max(0.0, whole - least)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        found = calibrate(metric, replace(config, tolerance=middle), trials, told)
        low, high = (low, middle) if spend(found.bounds) <= tokens else (middle, high)
    fitting = [b for b in trials.values if len(b) == config.k and spend(b) <= tokens]
    best = max(fitting, key=lambda b: (trials.values[b], -spend(b)))
    return Calibration(best, trials.values[best], whole)


def _lowered(bounds: Bounds, place: int, config: CalibrationConfig) -> list[Bounds]:
    """The bounds with one of them lowered, the lowest first and the unchanged last.

    The finest first: down to its finer neighbour, which is decided.  The coarsest first: its finer
    neighbours, which are not decided yet, are lowered with it.
    """
    if config.order == "coarsest":
        return [bounds[:place] + (x,) * (config.k - place) for x in config.grid if x <= bounds[place]]
    least = bounds[place + 1] if place + 1 < config.k else 0.0
    return [bounds[:place] + (x,) + bounds[place + 1 :] for x in config.grid if least <= x <= bounds[place]]


def _lowest(candidates: list[Bounds], good: Callable[[Bounds], bool]) -> Bounds:
    """The first good candidate by bisection; the last one is known to be good."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(candidates[middle]) else (middle + 1, high)
    return candidates[high]
