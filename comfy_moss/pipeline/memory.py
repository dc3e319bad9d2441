"""Memory: what a picture takes by a method, predicted from its forward passes before anything is drawn.

The one cost model of memory, as `ForwardPass.macs` is of arithmetic: nodes ask the host for so much, and warn
by it; `benchmarks/memory.py` prints it as a table and holds it against measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..model.backbone import Backbone
from ..model.memory import FLOAT, decoder_bytes, weight_bytes
from ..model.schedule import Schedule
from .cost import ForwardPass
from .fastvar import FastVARConfig
from .plan import Method, Plan

TEXT = 32  # tokens of a prompt, about
MAPS = 3  # of codes at full size: the sum before a scale, what it adds, and the sum with it
RESERVED = 0.6 * 2**30  # bytes of a card that driver, desktop and host keep for themselves, about
FITS, OFFLOAD, TOO_LARGE = "fits", "fits with offload", "does not"


@dataclass(frozen=True)
class Memory:
    """Bytes that a batch takes.

    Attributes:
        transformer, codec: weights.
        condition: the prompts made ready for every layer, what tokens look up, and the sum of codes.
        cache: keys and values of drawn tokens.
        activations: of the largest forward pass, besides those; decoder: of decoding one picture at once.
        layer: weights of one block, of which two are on the device while others wait elsewhere.
    """

    transformer: int
    codec: int
    condition: int
    cache: int
    activations: int
    decoder: int
    layer: int

    @property
    def drawing(self) -> int:
        """All but weights, while the transformer runs."""
        return self.condition + self.cache + self.activations

    @property
    def decoding(self) -> int:
        """All but weights, while the codec runs: the cache waits for another refinement."""
        return self.condition + self.cache + self.decoder

    @property
    def peak(self) -> int:
        """With all weights on the device."""
        return self.transformer + self.codec + max(self.drawing, self.decoding)

    @property
    def least(self) -> int:
        """With weights streamed, block by block, and the codec there for decoding alone."""
        return max(self.drawing + 2 * self.layer, self.decoding + self.codec)

    def fit(self, device_bytes: float) -> str:
        """FITS, OFFLOAD or TOO_LARGE on a device of that much memory."""
        free = device_bytes - RESERVED
        return FITS if self.peak <= free else OFFLOAD if self.least <= free else TOO_LARGE


def remedies(found: Memory, device_bytes: float, ways: Mapping[str, Memory]) -> list[str]:
    """Those ways, by name, by which what is too large for a device would fit; all where none is enough."""
    if found.fit(device_bytes) != TOO_LARGE:
        return []
    enough = [name for name, memory in ways.items() if memory.fit(device_bytes) != TOO_LARGE]
    return enough or list(ways)


def predict(
    backbone: Backbone, method: Method, schedule: Schedule, guided: bool, batch: int = 1, text: int = TEXT
) -> Memory:
    """What a batch takes; the backbone's weights may be on the meta device.

    Args:
        guided: whether the recipe asks for guidance.
        text: tokens of the longest prompt.
    """
    passes = method.forward_passes(schedule, guided, backbone.work.before(schedule), backbone.depth)
    rows = batch * max(step.rows for step in passes)
    cells = math.prod(backbone.map_grid(schedule.grids[-1]))
    around = backbone.table_bytes(schedule.tokens()) + MAPS * batch * backbone.channels * cells * FLOAT
    codec = next(backbone.vae.decoder.parameters())
    transformer = weight_bytes(backbone.transformer)
    return Memory(
        transformer, weight_bytes(backbone.vae), backbone.condition_bytes(rows, text) + around,
        cached_bytes(backbone, passes, rows) + _saved(backbone, method, schedule, rows),
        _activations(backbone, method, schedule, passes, batch),
        decoder_bytes(backbone.vae.config, cells * backbone.stride**2, codec.itemsize),
        transformer // backbone.depth,
    )


def cached_bytes(backbone: Backbone, passes: Sequence[ForwardPass], rows: int) -> int:
    """Of the KV cache that these passes fill, with what runs before the picture."""
    depth, empty = backbone.depth, backbone.cache_bytes(rows, 0)
    stored = sum(step.tokens * (step.layers or depth) for step in passes if step.stored)
    each = backbone.cache_bytes(rows, 1) - empty  # of a token in all layers
    return empty + each * (stored - backbone.work.prefix * depth) // depth


def _saved(backbone: Backbone, method: Method, schedule: Schedule, rows: int) -> int:
    """FastVAR's saved updates: one for each residual branch of the layers that prune."""
    if not isinstance(method, FastVARConfig) or not method.prune:
        return 0
    saved = len(schedule) - method.skip - len(method.prune) - 1
    layers = sum(map(method.prunes, range(backbone.depth)))
    return 3 * layers * rows * schedule.tokens(saved, saved + 1) * backbone.width * backbone.item


def _activations(
    backbone: Backbone, method: Method, schedule: Schedule, passes: Sequence[ForwardPass], batch: int
) -> int:
    """Of the largest pass; while a scale is drafted, the hidden states of the one before are still there."""
    drafted = method.on(schedule).draft if isinstance(method, Plan) else len(passes)
    found = []
    for n, step in enumerate(passes):
        before = passes[n - 1].tokens if 0 < n < drafted else 0
        rows = batch * step.rows
        hidden = FLOAT * rows * before * backbone.width
        found.append(hidden + backbone.pass_bytes(rows, step.tokens, step.past, step.stored))
    return max(found)
