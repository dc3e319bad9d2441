"""What was tried: the metric's value of every pair of bounds so far, kept in a file so that nothing is measured twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_moss.images import write_files

from ..notes import difference, read_note

FORMAT = 1  # of the file; raised when a key changes its meaning
Bounds = tuple[float, ...]
Metric = Callable[[Bounds], float]  # bounds in percent, coarsest refine scale first -> value, higher is better


@dataclass
class Trials:
    """Values by bounds.  A file may serve several searches of one metric: other tolerances, steps, orders and k.

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
            raise ValueError(f"{path} is no state of a calibration by this version; name another file, or take it away")
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
                raise ValueError(f"the metric returned {value} for the bounds [{text}]; it must return a finite number")
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
        write_files({self.path: (json.dumps(state, indent=1) + "\n").encode()})
