"""What a stored result says: scores, differences and ratios, with how far they could move had other prompts
been drawn.

That is a bootstrap: prompts are drawn anew with replacement, within each task, and the same ones for every
method.  So a difference between two methods is paired, and the luck of easy prompts cancels out of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from comfy_moss.model.backbone import PAPER

DRAWS = 4000
LEVEL = 0.95
MARGIN = 0.10  # by which dense must beat the draft below for differences between methods to mean anything
YARDSTICK = "draft-3"


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
    """What each prompt weighs in the mean over tasks, (draws + 1, prompts): first as it is, then in every new
    draw.

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


def ratio(
    top: Sequence[float] | np.ndarray, bottom: Sequence[float] | np.ndarray, weight: np.ndarray
) -> Interval | None:
    """A mean over another one of the same prompts; None where the latter is 0."""
    above, below = (weight @ np.asarray(values, float) for values in (top, bottom))
    drawn = below > 0  # a draw of few prompts may have nothing in it
    return _interval(above[drawn] / below[drawn]) if drawn[0] else None


def _interval(drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(drawn[0]), float(low), float(high))


# --- a result -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """Two methods taken by turns, the second one in `share` of all pictures, and how long a picture then
    takes."""

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

    @property
    def plans(self) -> list[str]:
        """Those with refine passes that are no MoSs of the paper, by name or by their text."""
        return [name for name in self.methods if name not in self.variants and "@" in self.text(name)]

    def text(self, name: str) -> str:
        """A method's plan as text; its name where that is unknown."""
        return self.result["setting"].get("plans", PAPER.plans).get(name, name)

    @property
    def variants(self) -> list[str]:
        """MoSs-k of the paper, whole or with parts of its refine step off."""
        return [name for name in self.methods if re.match(r"moss\d", name)]

    @property
    def workers(self) -> int:
        """Processes that drew at once."""
        return self.result.get("workers") or self.result["setting"].get("workers", 1)

    def work(self, name: str) -> float | None:
        """Multiply-adds as a share of dense's; None where they were not told."""
        return self.result.get("work", {}).get(name)

    @cached_property
    def tasks(self) -> list[str]:
        """Of every prompt."""
        hits = self.rows["dense"]["hits"]
        return [task for _ in next(iter(hits.values())) for task in hits]

    @cached_property
    def weight(self) -> np.ndarray:
        """See `weights`."""
        return weights(self.tasks)

    def hits(self, name: str, column: str = "hits") -> np.ndarray:
        """1 or 0 a prompt; column is "hits" or "shuffled"."""
        return np.array([list(digits) for digits in self.rows[name][column].values()], float).T.ravel()

    def score(self, name: str, task: str | None = None, column: str = "hits") -> Interval:
        """The mean over tasks, or one task's share."""
        if task is None:
            return mean(self.hits(name, column), self.weight)
        chosen = np.array(self.tasks) == task
        weight = self.weight[:, chosen] * len(set(self.tasks))
        return mean(self.hits(name, column)[chosen], weight)

    def faithful(self, name: str) -> np.ndarray:
        """1 or 0 a prompt: whether its picture is a hit that also shows the texture, where the prompt names
        one."""
        return self.hits(name) * np.where(self._named, self._shown(name), 1.0)

    def faithfulness(self, name: str) -> Interval:
        """The mean of `faithful` over tasks."""
        return mean(self.faithful(name), self.weight)

    def faithfulness_difference(self, name: str, rival: str | Mixture) -> Interval:
        """How much more often a method's pictures show all that their prompts say."""
        return mean(self.faithful(name) - self._of(rival, self.faithful), self.weight)

    def overall(self, name: str) -> Interval:
        """The mean of score and of score with textures: the metric `faithful` of `calibrate`."""
        return mean((self.hits(name) + self.faithful(name)) / 2, self.weight)

    def likeness(self, name: str, measure: str) -> Interval | None:
        """Mean "psnr" or "ssim" to dense; None for dense."""
        values = self.rows[name].get(measure)
        return None if values is None else mean(values, self.weight)

    def textured(self, name: str) -> Interval | None:
        """Share of the pictures that show the texture which their prompt names; None where no prompt names
        one."""
        return ratio(self._shown(name), self._named, self.weight)

    def textured_difference(self, name: str, rival: str | Mixture) -> Interval | None:
        """How much more often a method shows the named texture than another one."""
        return ratio(self._shown(name) - self._of(rival, self._shown), self._named, self.weight)

    def _shown(self, name: str) -> np.ndarray:
        return np.array([digit == "1" for digit in self.rows[name]["textured"]], float)

    @cached_property
    def _named(self) -> np.ndarray:
        """Whether a prompt names a texture."""
        return np.array([digit != "-" for digit in self.rows["dense"]["textured"]])

    def energy(self, name: str | Mixture, reference: str | Mixture) -> Interval | None:
        """Energy in the objects of all prompts that name a texture, as a share of the reference's."""
        ours, theirs = (self._of(which, self._energy) * self._named for which in (name, reference))
        return ratio(ours, theirs, self.weight)

    def difference(self, name: str, rival: str | Mixture) -> Interval:
        """How much higher a method scores than another one on the same prompts and seeds."""
        return mean(self.hits(name) - self._of(rival, self.hits), self.weight)

    def _energy(self, name: str) -> np.ndarray:
        return np.array(self.rows[name]["texture"])

    @staticmethod
    def _of(name: str | Mixture, values: Any) -> np.ndarray:
        if isinstance(name, str):
            return values(name)
        return (1 - name.share) * values(name.first) + name.share * values(name.second)

    # --- time ----------------------------------------------------------------------------------------------

    def seconds(self, name: str) -> float:
        """Median of the batches' drawing time a picture, without the decoder."""
        return float(np.median(self.rows[name]["draw_s"]))

    def whole_seconds(self, name: str) -> float:
        """The same with the decoder."""
        return float(np.median(np.add(self.rows[name]["draw_s"], self.rows[name]["decode_s"])))

    def times_as_fast(self, name: str) -> float:
        """Dense's drawing time over this one's, each pair from one batch, then the median."""
        return float(np.median(np.divide(self.rows["dense"]["draw_s"], self.rows[name]["draw_s"])))

    def at_time(self, seconds: float, names: Sequence[str]) -> Mixture:
        """The two of these methods that are next to this time, mixed to take exactly as long; at the ends,
        one alone."""
        ladder = sorted(names, key=self.seconds)
        times = [self.seconds(name) for name in ladder]
        after = int(np.searchsorted(times, seconds))
        if after in (0, len(ladder)):
            only = min(after, len(ladder) - 1)
            return Mixture(ladder[only], ladder[only], 0.0, times[only])
        share = (seconds - times[after - 1]) / (times[after] - times[after - 1])
        return Mixture(ladder[after - 1], ladder[after], share, seconds)

    # --- verdicts ------------------------------------------------------------------------------------------

    def gate(self) -> bool | None:
        """Whether dense shows all that prompts say more often than draft-3, by the margin and with intervals
        apart.

        None where draft-3 was not drawn.
        """
        if YARDSTICK not in self.rows:
            return None
        apart = self.faithfulness("dense").low > self.faithfulness(YARDSTICK).high
        return apart and self.faithfulness_difference("dense", YARDSTICK).value >= MARGIN

    def correlation(self, k: str) -> Interval:
        """The mean over prompts of Pearson's r."""
        values = self.result["correlation"][k]
        return mean(values, weights(["all"] * len(values)))

    def rivals(self, name: str) -> dict[str, str | Mixture]:
        """What moss-k or a plan has to beat, by how tables call it: a plan also MoSs, with the found bounds
        and with the paper's, mixed to take as long.

        Its draft and skipping have the guidance of a plan that names another one than the recipe's.
        """
        printed, seconds, strength = f"{name}-paper", self.seconds(name), self._strength(name)
        plan = name in self.plans
        bare = name.removeprefix("moss").removesuffix("-paper")
        own = self.text(name).partition(";")[0].partition(" ")[0] + strength if plan else f"draft-{bare}"
        alike = rf"(dense|draft-\d+){re.escape(strength)}"
        skipping = [label for label in self.methods if re.fullmatch(alike, label)] or ["dense"]
        least = min(skipping, key=self.seconds)
        found: dict[str, str | Mixture] = {own: own} if own in self.methods else {}
        found["skipping, equal time"] = self.at_time(seconds, skipping)
        if plan:
            paper = [moss for moss in self.mosses if moss.endswith("-paper")]
            kinds = {"moss": [moss for moss in self.mosses if moss not in paper], "the paper's moss": paper}
            for kind, mosses in kinds.items():
                if mosses:
                    mixed = dict.fromkeys([least, *mosses, "dense"])
                    found[f"{kind}, equal time"] = self.at_time(seconds, list(mixed))
            found |= {name: name for name in self.methods if name.partition(" ")[0] == "dense"}
        if printed in self.methods:
            found["the paper's bounds"] = printed
        if "fastvar" in self.methods:
            mixed = dict.fromkeys([least, "fastvar", "dense"])
            found |= {"fastvar": "fastvar", "fastvar, equal time": self.at_time(seconds, list(mixed))}
        return found

    def _strength(self, name: str) -> str:
        """What a plan says of its draft's strength, " cfg 3"; nothing where that is the recipe's."""
        said = self.text(name).partition(";")[0].partition(" cfg ")[2]
        return f" cfg {said}" if said and float(said) != self.result["setting"]["cfg"] else ""
