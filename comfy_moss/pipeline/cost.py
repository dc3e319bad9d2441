"""Cost: what a picture took, as measured, and what a method takes in multiply-adds, as predicted from its token counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..model.backbone import TokenWork
from ..model.schedule import Schedule

AROUND = ("load", "rebuild", "preview")  # stages that depend on what ran before and on what is shown, not on the method


@dataclass(frozen=True)
class Cost:
    """What drawing took.

    Attributes:
        label: the method with its k, as `Method.label` writes it: "dense", "draft-4", "fastvar", "moss4".
        tokens_per_scale: tokens a picture, one number for every scale of the schedule, 0 where the transformer did not run.
        kv_bytes: of the largest KV cache that was allocated.
        seconds: wall time by stage, in the order they ran.
        queue_to_latent: seconds from the queue to the finished latent, in the run of the graph that made it; None outside a host.
    """

    label: str
    tokens_per_scale: tuple[int, ...]
    kv_bytes: int
    seconds: dict[str, float]
    queue_to_latent: float | None = None

    def plus(self, seconds: Mapping[str, float], **changes: Any) -> Cost:
        """A copy with stages' times added, and with other fields replaced.  A stage that ran again counts both times."""
        summed = self.seconds | {stage: self.seconds.get(stage, 0.0) + more for stage, more in seconds.items()}
        return replace(self, **changes, seconds=summed)

    @property
    def total_seconds(self) -> float:
        """All that one waits for."""
        return sum(self.seconds.values())

    @property
    def method_seconds(self) -> float:
        """What the method itself takes: all but AROUND."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage not in AROUND)

    @property
    def refine_tokens(self) -> int:
        """Tokens a picture that one refine pass drew: those of the last k scales of "moss<k>"; 0 for other methods."""
        moss = re.fullmatch(r"moss(\d+)", self.label)
        return sum(self.tokens_per_scale[-int(moss[1]) :]) if moss else 0


def in_order_work(schedule: Schedule, scales: int, work: TokenWork) -> float:
    """Multiply-adds a row of drawing the first `scales` scales in order and everywhere.

    Each scale attends to all earlier ones and to itself; what a prompt has in the cache runs with the first scale.
    """
    later = (refine_work(schedule.tokens(0, s), schedule.tokens(s, s + 1), work) for s in range(1, scales))
    return sum(later, _pass_work(0, work.prefix + schedule.tokens(0, 1), work) if scales else 0.0)


def refine_work(draft_tokens: int, tokens: int, work: TokenWork) -> float:
    """Multiply-adds a row of one pass of `tokens` tokens that attend to the draft and to each other."""
    return _pass_work(work.prefix + draft_tokens, tokens, work)


def _pass_work(cached: int, tokens: int, work: TokenWork) -> float:
    return tokens * (work.linear + work.attention * (cached + tokens))


def dense_share(schedule: Schedule, scales: int, refine_tokens: int, work: TokenWork) -> float:
    """Work of a draft and its refine step as a share of drawing every scale in order: 0.25 = a quarter.

    A prediction of the transformer's arithmetic alone, with the same number of rows throughout: the codec, the text encoder
    and the speed of the device are no part of it.

    Args:
        scales: of the draft, in [1, S].
        refine_tokens: of all refine scales together.
    """
    draft, dense = (in_order_work(schedule, count, work) for count in (scales, len(schedule)))
    return (draft + refine_work(schedule.tokens(0, scales), refine_tokens, work)) / dense
