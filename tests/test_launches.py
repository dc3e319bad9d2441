"""What the blocks of Infinity-2B launch in a refine pass, counted on the meta device."""

from __future__ import annotations

from comfy_moss.benchmarks.parts import count, count_picture, fused
from comfy_moss.benchmarks.shapes import SHAPES
from comfy_moss.ops import TORCH

LAYERS = SHAPES["2b"].transformer.depth


def test_a_layer_launches_at_most_twelve_kernels() -> None:
    launched = count(fused)
    assert launched.total() <= 12 * LAYERS + 1  # the first norm has no add before it
    assert launched["linear"] == 5 * LAYERS and launched["linear_gelu"] == LAYERS
    assert not {"cat", "copy_", "_to_copy", "clone"} & launched.keys()  # nothing joined, nothing turned round


def test_torch_alone_joins_and_converts_nothing_that_a_picture_needs_once() -> None:
    launched = count(lambda _: TORCH)
    assert launched.total() <= 48 * LAYERS and launched["cat"] == 2 * LAYERS  # keys, and values, of the cache


def test_a_picture_launches_little_around_its_blocks() -> None:
    """Prompts, rotations and noise once; embedding, head, sampling and resampling in every pass."""
    passes = 9  # of moss5: eight drafted scales, and one refine pass
    around = count_picture(fused, "moss5").total() - passes * count(fused).total()
    assert around <= 10 * LAYERS + 150 * passes
