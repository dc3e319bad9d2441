"""What a method has to compute and to move, by arithmetic: the forward passes it makes, their operations and their bytes.

Counted are the transformer's blocks: their matrices, and self-attention's scores and values.  Left out are attention over the
text, what lies around the blocks, activations, and the codec; so times derived from it are lower bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comfy_moss.model.backbone import PAPER, Published, TokenWork
from comfy_moss.model.schedule import Schedule
from comfy_moss.pipeline.dispatch import refine_counts
from comfy_moss.pipeline.fastvar import FastVARConfig
from comfy_moss.pipeline.generate import Method

from .machine import Ceilings


@dataclass(frozen=True)
class Span:
    """Some layers of one forward pass, all of which run the same tokens.

    Attributes:
        layers: how many.
        rows: of the batch, unconditional ones included.
        tokens: new tokens a row.
        past: tokens a row in the cache.
        attended: over all new tokens of a row, how many tokens each attends to, itself included.
        stored: whether the new tokens go into the cache.
    """

    layers: int
    rows: int
    tokens: int
    past: int
    attended: int
    stored: bool


@dataclass(frozen=True)
class Model:
    """What the sizes of a transformer mean for its work; `work` is a token's in all of its `depth` layers."""

    work: TokenWork
    depth: int
    itemsize: int  # bytes of a weight and of a cached number

    def flops(self, span: Span) -> float:
        """Floating-point operations, two for each multiply-add."""
        products = span.tokens * self.work.linear + span.attended * self.work.attention
        return 2 * span.rows * products * span.layers / self.depth

    def bytes(self, span: Span) -> float:
        """The matrices once, the cache read once, and what is written to it.

        A token's score takes as many multiply-adds as its key has numbers, and its value likewise.
        """
        cached = span.rows * (span.past + span.stored * span.tokens) * self.work.attention
        return self.itemsize * (self.work.linear + cached) * span.layers / self.depth

    def seconds(self, spans: Sequence[Span], ceilings: Ceilings) -> float:
        """The roofline: every span takes at least the longer of its operations' and its bytes' time, one after another."""
        return sum(max(self.flops(s) / ceilings.flops, self.bytes(s) / ceilings.bandwidth) for s in spans)


def spans(
    method: Method, schedule: Schedule, depth: int, guided: bool, published: Published = PAPER, prefix: int = 0
) -> list[Span]:
    """The passes of one picture.

    Args:
        published: settings as printed for the model's family.
        prefix: tokens of the prompt that run with the first scale; see `TokenWork`.

    Raises:
        ValueError: the method leaves no scale to draw on this schedule.
    """
    method.check(schedule)
    rows = 2 if guided else 1
    if method.name == "fastvar":
        return _fastvar(FastVARConfig(**vars(published.pruning)), schedule, depth, rows, prefix)
    drafted = len(schedule) - method.k
    passes = [_in_order(schedule, scale, depth, rows, prefix) for scale in range(drafted)]
    if method.name == "moss":
        passes.append(_refine(method, schedule, depth, rows if method.guidance else 1, prefix))
    return passes


def _in_order(schedule: Schedule, scale: int, depth: int, rows: int, prefix: int) -> Span:
    past, tokens = schedule.tokens(0, scale), schedule.tokens(scale, scale + 1)
    past, tokens = (past + prefix, tokens) if scale else (0, tokens + prefix)
    return Span(depth, rows, tokens, past, tokens * (past + tokens), stored=scale < len(schedule) - 1)


def _refine(method: Method, schedule: Schedule, depth: int, rows: int, prefix: int) -> Span:
    counts, past = refine_counts(schedule, method.bounds), prefix + schedule.tokens(0, len(schedule) - method.k)
    tokens = sum(counts)
    seen = tokens**2 if method.cross_scale else sum(n**2 for n in counts)
    return Span(depth, rows, tokens, past, tokens * past + seen, stored=False)


def _fastvar(config: FastVARConfig, schedule: Schedule, depth: int, rows: int, prefix: int) -> list[Span]:
    """Every scale twice: in the layers that prune, and in those that run every token."""
    pruning, scales = sum(map(config.prunes, range(depth))), len(schedule) - config.skip
    whole = [h * w for h, w in schedule.grids]
    passes = []
    for scale in range(scales):
        for layers, tokens in ((pruning, config.kept(schedule)), (depth - pruning, whole)):
            past, n = (prefix + sum(tokens[:scale]), tokens[scale]) if scale else (0, tokens[0] + prefix)
            passes.append(Span(layers, rows, n, past, n * (past + n), stored=scale < scales - 1))
    return [span for span in passes if span.layers]
