"""Measuring calls beside each other: in turn, in random order, and told as median and spread."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .machine import peak_memory, timed

Say = Callable[[str], None]  # progress, a line at a time


@dataclass(frozen=True)
class Sample:
    """One measured call: its time, its peak of GPU memory (None on a CPU), and what it returned."""

    seconds: float
    peak_bytes: int | None
    result: Any


def run_rounds(
    device: torch.device, calls: Mapping[str, Callable[[], Any]], runs: int, warmup: int, say: Say
) -> dict[str, list[Sample]]:
    """Run all calls once a round, in an order drawn anew for each, so that a slow minute of the machine hits all alike.

    Args:
        runs: rounds that are measured, after `warmup` rounds that are not.
        calls: what they return is kept, so it should be small.

    Returns:
        Per call, its samples by round.
    """
    order, names = random.Random(0), list(calls)
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for turn in range(warmup + runs):
        order.shuffle(names)
        for name in names:
            say(f"warm-up {turn + 1}/{warmup}: {name}" if turn < warmup else f"round {turn - warmup + 1}/{runs}: {name}")
            peak, (seconds, result) = peak_memory(device, partial(timed, device, calls[name]))
            if turn >= warmup:
                samples[name].append(Sample(seconds, peak, result))
    return samples


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median and interquartile range; the latter is None for a single value."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else None
    return {"median": statistics.median(values), "iqr": quartiles[2] - quartiles[0] if quartiles else None}


def times_as_fast(samples: Sequence[float], reference: Sequence[float]) -> dict[str, float | None]:
    """Spread of the reference's seconds over these, each pair from one round."""
    return spread([slow / fast for fast, slow in zip(samples, reference, strict=True)])
