"""What a method has to compute and to move, by arithmetic: the forward passes it makes, their operations and their bytes.

Counted are the transformer's blocks: their matrices, and self-attention's scores and values.  Left out are attention over the
text, what lies around the blocks, activations, and the codec; so times derived from it are lower bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comfy_moss.model.backbone import TokenWork
from comfy_moss.pipeline.cost import ForwardPass

from .machine import Ceilings


@dataclass(frozen=True)
class Model:
    """What the sizes of a transformer mean for its work; `work` is a token's in all of its `depth` layers."""

    work: TokenWork
    depth: int
    itemsize: int  # bytes of a weight and of a cached number

    def flops(self, span: ForwardPass) -> float:
        """Floating-point operations, two for each multiply-add."""
        return 2 * span.macs(self.work, self.depth)

    def bytes(self, span: ForwardPass) -> float:
        """The matrices once, the cache read once, and what is written to it.

        A token's score takes as many multiply-adds as its key has numbers, and its value likewise.
        """
        cached = span.rows * (span.past + span.stored * span.tokens) * self.work.attention
        layers = self.depth if span.layers is None else span.layers
        return self.itemsize * (self.work.linear + cached) * layers / self.depth

    def seconds(self, spans: Sequence[ForwardPass], ceilings: Ceilings) -> float:
        """The roofline: every span takes at least the longer of its operations' and its bytes' time, one after another."""
        return sum(max(self.flops(s) / ceilings.flops, self.bytes(s) / ceilings.bandwidth) for s in spans)
