"""What forward passes compute and move, and the least time that takes on a machine: the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comfy_moss.model.backbone import TokenWork
from comfy_moss.pipeline.cost import ForwardPass

from .machine import Ceilings


@dataclass(frozen=True)
class Roofline:
    """What a transformer's forward passes move and compute; `work` is a token's in all of its `depth` layers.

    Counted are the blocks: their matrices, and self-attention's scores and values.  Left out are attention
    over the text, what lies around the blocks, activations, and the codec; so times derived from it are lower
    bounds.
    """

    work: TokenWork
    depth: int
    itemsize: int  # bytes of a weight and of a cached number

    def flops(self, step: ForwardPass) -> float:
        """Floating-point operations, two for each multiply-add."""
        return 2 * step.macs(self.work, self.depth)

    def bytes(self, step: ForwardPass) -> float:
        """The matrices once, the cache read once, and what is written to it.

        A token's score takes as many multiply-adds as its key has numbers, and its value likewise.
        """
        cached = step.rows * (step.past + step.stored * step.tokens) * self.work.attention
        layers = self.depth if step.layers is None else step.layers
        return self.itemsize * (self.work.linear + cached) * layers / self.depth

    def seconds(self, steps: Sequence[ForwardPass], ceilings: Ceilings) -> float:
        """Every pass takes at least the longer of its operations' and its bytes' time, one after another."""
        return sum(max(self.flops(s) / ceilings.flops, self.bytes(s) / ceilings.bandwidth) for s in steps)
