"""Stopwatch: wall time of the stages of a picture, on any device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


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
