"""From samples to the rows of a result."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_moss.pipeline.generate import STAGES

from .calls import DECODE
from .machine import Ceilings
from .measure import Sample, spread, times_as_fast
from .order import Order
from .variants import Variant
from .work import Model


@dataclass(frozen=True)
class Rows:
    """All that a row is made from.

    Attributes:
        samples: by `Variant.run`, and the decoder's under DECODE; the same number for all, by round.
        encoding: seconds of each run of the text encoder.
        trusted: whether every limit holds; if not, no row tells a speed-up.
    """

    order: Order
    model: Model
    ceilings: Ceilings
    samples: Mapping[str, Sequence[Sample]]
    encoding: Sequence[float]
    trusted: bool

    def row(self, variant: Variant) -> dict[str, Any]:
        """One variant: what it does, what it allocates, and how long it takes, in bytes and seconds."""
        samples = self.samples[variant.run]
        drawing, whole = self._seconds(variant)
        stages = {stage: statistics.median(s.result.seconds[stage] for s in samples) for stage in STAGES if stage != DECODE}
        cost = samples[-1].result
        return {
            "label": variant.label,
            "kernels": variant.kernels.name,
            "tokens": sum(cost.tokens_per_scale),
            "tokens_per_scale": list(cost.tokens_per_scale),
            "kv_bytes": cost.kv_bytes,
            "peak_bytes": None if self.order.graphs else peak(samples),  # graphs keep memory, each method's beside the others'
            **self._work(variant, statistics.median(drawing)),
            "drawing_s": spread(drawing),
            "end_to_end_s": spread(whole),
            "stages_s": stages,
            "rounds_s": drawing,
            **self._speed(drawing, whole),
        }

    def _work(self, variant: Variant, seconds: float) -> dict[str, float]:
        """Operations and bytes by arithmetic, and how much of the time they would take at the ceilings."""
        order, prefix = self.order, self.model.work.prefix
        passes = variant.method.forward_passes(order.schedule, order.guided, prefix, self.model.depth)
        roofline = self.model.seconds(passes, self.ceilings)
        return {
            "flops": sum(map(self.model.flops, passes)),
            "bytes": sum(map(self.model.bytes, passes)),
            "roofline_s": roofline,
            "roofline_share": roofline / seconds,
        }

    def _seconds(self, variant: Variant) -> tuple[list[float], list[float]]:
        """Of every round: drawing, and the whole picture with that round's decoding and the prompt's median time."""
        drawing = [sample.seconds for sample in self.samples[variant.run]]
        text = statistics.median(self.encoding)
        return drawing, [text + a + b.seconds for a, b in zip(drawing, self.samples[DECODE], strict=True)]

    def _speed(self, drawing: Sequence[float], whole: Sequence[float]) -> dict[str, Any]:
        if not self.trusted:
            return {"times_as_fast": None, "times_as_fast_end_to_end": None}
        dense = next(method for method in self.order.methods if method.name == "dense")
        reference = self._seconds(Variant("dense", dense, self.order.kernels, self.order.graphs))
        return {
            "times_as_fast": times_as_fast(drawing, reference[0]),
            "times_as_fast_end_to_end": times_as_fast(whole, reference[1]),
        }


def peak(samples: Sequence[Sample]) -> int | None:
    """Most bytes of GPU memory in any of them; None on a CPU."""
    return max((sample.peak_bytes for sample in samples if sample.peak_bytes is not None), default=None)
