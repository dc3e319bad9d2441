"""Precisions of the blocks: float16 and what it cannot hold, fp8 as a mere type to store matrices in."""

from __future__ import annotations

import torch
from builders import released_state, tiny_backbone, tiny_transformer
from test_limits import make_recipe

from comfy_moss.model.checkpoint import transformer_from_state
from comfy_moss.model.layers import Layers
from comfy_moss.pipeline.plan import parse_plan, run


def test_float16_draws_nearly_what_float32_draws():
    plain, plan = tiny_backbone(), parse_plan("dense")
    half = tiny_backbone()
    half.transformer.blocks.half()
    first, second = (run(one, make_recipe(), plan).total for one in (plain, half))
    assert (first - second).abs().mean() < 0.05 * first.abs().mean()


def test_activations_beyond_float16_stay_finite():
    half = tiny_backbone()
    for block in half.transformer.blocks:
        for layer in (block.ffn.fc1, block.ffn.fc2, block.sa.proj, block.ca.proj):
            layer.weight.data *= 2000
    half.transformer.blocks.half()
    assert torch.isfinite(run(half, make_recipe(), parse_plan("dense")).total).all()


def test_matrices_stored_in_less_are_asked_of_the_layers_for():
    asked = []

    def pick(stored, dtype, quantised):
        asked.append((stored, dtype, quantised))
        return torch.nn

    layers = Layers(stored=torch.float8_e4m3fn, pick=pick)
    model = transformer_from_state(released_state(tiny_transformer()), layers=layers)
    block = model.blocks[0]
    assert asked == [(torch.float8_e4m3fn, torch.float32, False)]
    assert block.ffn.fc1.weight.dtype == torch.float8_e4m3fn and model.head.weight.dtype == torch.float32
    assert block.ffn.fc1.bias.dtype == block.ca_norm.weight.dtype == model.dtype == torch.float32
