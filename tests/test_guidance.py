"""Classifier-free guidance: per scale, with negative prompts, and inside the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import tiny_backbone
from test_limits import SCHEDULE, make_recipe

from comfy_moss.model.backbone import Step
from comfy_moss.model.sampling import Guidance, mix_rows
from comfy_moss.model.schedule import Positions
from comfy_moss.pipeline.draft import draw_draft


@pytest.fixture(scope="module")
def model():
    return tiny_backbone(depth=3)


def first_logits(model, recipe, scale: int = 0):
    """Logits of the start token."""
    step = Step(Positions.of_scale(SCHEDULE, scale), SCHEDULE, recipe.condition(model), recipe.guidance)
    hidden = model.forward(None, step)
    return model.logits(hidden, step), hidden


def test_logits_are_mixed_between_prompt_and_learned_text(model):
    recipe = make_recipe(2)
    unconditional = replace(recipe, text=tuple(model.transformer.cfg_uncond[: len(t)] for t in recipe.text))
    positive, _ = first_logits(model, replace(recipe, guidance=Guidance(1.0)))
    negative, _ = first_logits(model, replace(unconditional, guidance=Guidance(1.0)))

    mixed, _ = first_logits(model, replace(recipe, guidance=Guidance(3.0)))

    assert torch.allclose(mixed, 3 * positive - 2 * negative, atol=1e-4)


def test_a_negative_prompt_takes_the_place_of_the_learned_text(model):
    recipe = make_recipe(2)
    negative = tuple(torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (9, 3))
    positive, _ = first_logits(model, replace(recipe, guidance=Guidance(1.0)))
    other, _ = first_logits(model, replace(recipe, text=negative, guidance=Guidance(1.0)))

    mixed, _ = first_logits(model, replace(recipe, negative=negative, guidance=Guidance(2.5)))

    assert torch.allclose(mixed, 2.5 * positive - 1.5 * other, atol=1e-4)


def test_strength_is_looked_up_per_scale():
    guidance = Guidance((1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 7.0))
    positions = Positions.concat([Positions.of_scale(SCHEDULE, n) for n in (6, 1)])

    cfg = guidance.at(positions, len(SCHEDULE))

    assert cfg[0, :256].unique() == 7 and cfg[0, 256:].unique() == 2
    assert guidance.active(7) and not Guidance((1.0,) * 7 + (4.0,)).active(7)


def test_rows_are_mixed_except_where_guidance_is_off():
    x = torch.randn(4, 3, 5)
    cfg = torch.tensor([1.0, 2.0, 4.0])[None, :, None]

    mixed = mix_rows(x, cfg)

    assert torch.equal(mixed[:, 0], x[:, 0])
    assert torch.allclose(mixed[1, 2], 4 * x[1, 2] - 3 * x[3, 2])
    assert torch.equal(mixed[:2, 1:], mixed[2:, 1:])


def test_guidance_after_the_last_block_makes_both_halves_equal_there(model):
    recipe = make_recipe(guidance=Guidance(3.0, layers=(-1,)))
    plain = make_recipe(guidance=Guidance(3.0, layers=(1,)))

    _, inside = first_logits(model, recipe)
    _, outside = first_logits(model, plain)

    assert torch.equal(inside[0], inside[1])
    assert torch.allclose(inside[0], 3 * outside[0] - 2 * outside[1], atol=1e-5)


def test_without_guidance_at_the_logits_the_prompt_rows_alone_decide(model):
    outside, hidden = first_logits(model, make_recipe(guidance=Guidance(3.0, layers=(1,))))
    alone, _ = first_logits(model, make_recipe(guidance=Guidance(1.0)))
    assert torch.allclose(outside, alone, atol=1e-5)


def test_guidance_inside_the_network_changes_the_picture(model):
    drafts = [
        draw_draft(model, make_recipe(guidance=Guidance(3.0, layers=layers)), 5)[0]
        for layers in ((0,), (-2,), (0, -1))
    ]
    assert not torch.equal(drafts[0].total, drafts[1].total)
    assert not torch.equal(drafts[0].total, drafts[2].total)


@pytest.mark.parametrize("layers", [(-3,), (2,)])
def test_layers_that_do_not_exist_are_named(model, layers):
    with pytest.raises(ValueError, match="guidance layers"):
        draw_draft(model, make_recipe(guidance=Guidance(3.0, layers=layers)), 1)


@pytest.mark.parametrize("cfg", [-1.0, float("nan"), (3.0, float("inf"))])
def test_impossible_strengths_are_named(cfg):
    with pytest.raises(ValueError, match="cfg"):
        Guidance(cfg)
