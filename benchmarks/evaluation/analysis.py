"""What a stored result says: scores, differences and ratios with their intervals."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import bootstrap
from .bootstrap import Interval

MARGIN = 0.10  # by which dense must beat the draft below for differences between methods to mean anything
YARDSTICK = "draft-3"


@dataclass(frozen=True)
class Mixture:
    """Two methods taken by turns, the second one in `share` of all pictures, and how long a picture then takes."""

    first: str
    second: str
    share: float
    seconds: float


@dataclass(frozen=True)
class Study:
    """A result, opened: everything by name of a method, and per prompt in the order of the suite's turns."""

    result: dict[str, Any]

    @property
    def rows(self) -> dict[str, Any]:
        return self.result["rows"]

    @property
    def methods(self) -> list[str]:
        """Names in the order of the tables."""
        return self.result["setting"]["methods"]

    @property
    def mosses(self) -> list[str]:
        """Those that are MoSs-k with a whole refine step, "moss4" or "moss4-paper"."""
        return [name for name in self.methods if re.fullmatch(r"moss\d+(-paper)?", name)]

    @cached_property
    def tasks(self) -> list[str]:
        """Of every prompt."""
        hits = self.rows["dense"]["hits"]
        return [task for _ in next(iter(hits.values())) for task in hits]

    @cached_property
    def weight(self) -> np.ndarray:
        """See `bootstrap.weights`."""
        return bootstrap.weights(self.tasks)

    def hits(self, name: str, column: str = "hits") -> np.ndarray:
        """1 or 0 a prompt; column is "hits" or "shuffled"."""
        return np.array([[int(digit) for digit in digits] for digits in self.rows[name][column].values()], float).T.ravel()

    def score(self, name: str, task: str | None = None, column: str = "hits") -> Interval:
        """The mean over tasks, or one task's share."""
        if task is None:
            return bootstrap.mean(self.hits(name, column), self.weight)
        chosen = np.array(self.tasks) == task
        weight = self.weight[:, chosen] * len(set(self.tasks))
        return bootstrap.mean(self.hits(name, column)[chosen], weight)

    def faithful(self, name: str) -> np.ndarray:
        """1 or 0 a prompt: whether its picture is a hit that also shows the texture, where the prompt names one."""
        return self.hits(name) * np.where(self._named, self._shown(name), 1.0)

    def faithfulness(self, name: str) -> Interval:
        """The mean of `faithful` over tasks."""
        return bootstrap.mean(self.faithful(name), self.weight)

    def faithfulness_difference(self, name: str, rival: str | Mixture) -> Interval:
        """How much more often a method's pictures show all that their prompts say."""
        return bootstrap.mean(self.faithful(name) - self._of(rival, self.faithful), self.weight)

    def likeness(self, name: str, measure: str) -> Interval | None:
        """Mean "psnr" or "ssim" to dense; None for dense."""
        values = self.rows[name].get(measure)
        return None if values is None else bootstrap.mean(values, self.weight)

    def textured(self, name: str) -> Interval | None:
        """Share of the pictures that show the texture which their prompt names; None where no prompt names one."""
        return bootstrap.ratio(self._shown(name), self._named, self.weight)

    def textured_difference(self, name: str, rival: str | Mixture) -> Interval | None:
        """How much more often a method shows the named texture than another one."""
        return bootstrap.ratio(self._shown(name) - self._of(rival, self._shown), self._named, self.weight)

    def _shown(self, name: str) -> np.ndarray:
        return np.array([digit == "1" for digit in self.rows[name]["textured"]], float)

    @cached_property
    def _named(self) -> np.ndarray:
        """Whether a prompt names a texture."""
        return np.array([digit != "-" for digit in self.rows["dense"]["textured"]])

    def energy(self, name: str | Mixture, reference: str | Mixture) -> Interval | None:
        """Energy in the objects of all prompts that name a texture, as a share of the reference's."""
        ours, theirs = (self._of(which, self._energy) * self._named for which in (name, reference))
        return bootstrap.ratio(ours, theirs, self.weight)

    def difference(self, name: str, rival: str | Mixture) -> Interval:
        """How much higher a method scores than another one on the same prompts and seeds."""
        return bootstrap.mean(self.hits(name) - self._of(rival, self.hits), self.weight)

    def _energy(self, name: str) -> np.ndarray:
        return np.array(self.rows[name]["texture"])

    @staticmethod
    def _of(name: str | Mixture, values: Any) -> np.ndarray:
        if isinstance(name, str):
            return values(name)
        return (1 - name.share) * values(name.first) + name.share * values(name.second)

    # --- time ---------------------------------------------------------------------------------------------------

    def seconds(self, name: str) -> float:
        """Median of the batches' drawing time a picture, without the decoder."""
        return statistics.median(self.rows[name]["draw_s"])

    def whole_seconds(self, name: str) -> float:
        """The same with the decoder."""
        row = self.rows[name]
        return statistics.median(a + b for a, b in zip(row["draw_s"], row["decode_s"], strict=True))

    def times_as_fast(self, name: str) -> float:
        """Dense's drawing time over this one's, each pair from one batch, then the median."""
        pairs = zip(self.rows["dense"]["draw_s"], self.rows[name]["draw_s"], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    def at_time(self, seconds: float, names: Sequence[str]) -> Mixture:
        """The two of these methods that are next to this time, mixed to take exactly as long; at the ends, one alone."""
        ladder = sorted(names, key=self.seconds)
        times = [self.seconds(name) for name in ladder]
        after = int(np.searchsorted(times, seconds))
        if after in (0, len(ladder)):
            only = min(after, len(ladder) - 1)
            return Mixture(ladder[only], ladder[only], 0.0, times[only])
        share = (seconds - times[after - 1]) / (times[after] - times[after - 1])
        return Mixture(ladder[after - 1], ladder[after], share, seconds)

    # --- verdicts -----------------------------------------------------------------------------------------------

    def gate(self) -> bool | None:
        """Whether dense shows all that prompts say more often than draft-3, by the margin and with intervals apart; None where
        draft-3 was not drawn."""
        if YARDSTICK not in self.rows:
            return None
        apart = self.faithfulness("dense").low > self.faithfulness(YARDSTICK).high
        return apart and self.faithfulness_difference("dense", YARDSTICK).value >= MARGIN

    def correlation(self, k: str) -> tuple[Interval, int]:
        """The mean over prompts of Pearson's r, and of how many."""
        values = self.result["correlation"][k]
        return bootstrap.mean(values, bootstrap.weights(["all"] * len(values))), len(values)

    def rivals(self, name: str) -> dict[str, str | Mixture]:
        """What moss-k has to beat, by how tables call it."""
        bare, seconds = name.removesuffix("-paper"), self.seconds(name)
        own, printed = f"draft-{bare.removeprefix('moss')}", f"{bare}-paper"
        skipping = [label for label in self.methods if label == "dense" or label.startswith("draft-")]
        found: dict[str, str | Mixture] = {own: own, "skipping, equal time": self.at_time(seconds, skipping)}
        if name != printed and printed in self.methods:
            found["the paper's bounds"] = printed
        if "fastvar" in self.methods:
            mixed = [min(skipping, key=self.seconds), "fastvar", "dense"]
            found |= {"fastvar": "fastvar", "fastvar, equal time": self.at_time(seconds, mixed)}
        return found
