"""Cost: what a picture took, as measured, and what a method takes in multiply-adds, as predicted from its token counts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..model.backbone import TokenWork
from ..model.schedule import Schedule

AROUND = ("load", "rebuild", "preview")  # stages that depend on what ran before and on what is shown, not on the method


class Stopwatch:
    """Seconds by stage, waiting for the device at both ends of each."""

    def __init__(self, device: torch.device, stages: Sequence[str] = ()) -> None:
        self.device = device
        self.seconds = dict.fromkeys(stages, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Cost:
    """What drawing took.

    Attributes:
        label: the method with its k, as `Method.label` writes it: "dense", "draft-4", "fastvar", "moss4".
        tokens_per_scale: tokens a picture, one number for every scale of the schedule, 0 where the transformer did not run.
        kv_bytes: of the largest KV cache that was allocated.
        seconds: wall time by stage, in the order they ran.
        refine_tokens: tokens a picture that refine passes drew.
        queue_to_latent: seconds from the queue to the finished latent, in the run of the graph that made it; None
            outside a host.
    """

    label: str
    tokens_per_scale: tuple[int, ...]
    kv_bytes: int
    seconds: dict[str, float]
    refine_tokens: int = 0
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


# --- multiply-adds, by arithmetic -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForwardPass:
    """Some layers of one forward pass, all of which run the same tokens.

    Attributes:
        rows: of the batch, unconditional ones included.
        tokens: new tokens a row.
        past: tokens a row in the cache.
        attended: over all new tokens of a row, how many tokens each attends to, itself included.
        stored: whether the new tokens go into the cache.
        layers: how many; None = all of them.
    """

    rows: int
    tokens: int
    past: int
    attended: int
    stored: bool
    layers: int | None = None

    @classmethod
    def of(cls, rows: int, past: int, counts: Sequence[int], stored: bool, cross_scale: bool = True) -> ForwardPass:
        """A pass over that many tokens of every of its scales, which see each other or (SA) only their own scale."""
        tokens = sum(counts)
        seen = tokens**2 if cross_scale else sum(n**2 for n in counts)
        return cls(rows, tokens, past, tokens * past + seen, stored)

    def macs(self, work: TokenWork, depth: int = 1) -> float:
        """Multiply-adds of the blocks: their matrices, self-attention's scores and values."""
        layers = depth if self.layers is None else self.layers
        return self.rows * (self.tokens * work.linear + self.attended * work.attention) * layers / depth


def whole_scales(schedule: Schedule, scales: int, rows: int, prefix: int = 0) -> list[ForwardPass]:
    """The passes of drawing the first scales whole: each attends to all earlier ones and to itself.

    Args:
        prefix: tokens of the prompt that run with the first scale and stay in the cache; see `TokenWork`.
    """
    passes, past = [], 0
    for scale in range(scales):
        tokens = schedule.tokens(scale, scale + 1) + (0 if scale else prefix)
        passes.append(ForwardPass.of(rows, past, (tokens,), stored=scale < len(schedule) - 1))
        past += tokens
    return passes
