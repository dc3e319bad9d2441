"""HART's parts: positions, truncation, soft mixes, passes, diffusion, quantiser, masks, arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from builders import tiny_backbone
from hart_builders import SCHEDULE, TINY, prompt, tiny_hart, tiny_hart_backbone, tiny_tokenizer

from comfy_moss.benchmarks.shapes import HART_07B
from comfy_moss.model.backbone import Backbone, PositionedText
from comfy_moss.model.hart import HartBackbone, HartTransformer
from comfy_moss.model.hart_head import (
    DiffusionSchedule,
    draw_code,
    draw_residual,
    exponential,
    guidance_weights,
    gumbel_softmax,
    normal,
    pass_of,
    pass_sizes,
    progress,
    top_k_top_p,
)
from comfy_moss.model.quantize import Quantizer, phi_index
from comfy_moss.model.rope import coordinates, picture_rotation, rotate
from comfy_moss.model.sampling import Guidance, Ramp, Sampling, bit_noise
from comfy_moss.model.schedule import Positions
from comfy_moss.model.vae import Tokenizer
from comfy_moss.pipeline.dispatch import Dispatch, RefinePass
from comfy_moss.pipeline.draft import Recipe, Residual, draw_draft
from comfy_moss.pipeline.plan import Plan, share_of_dense
from comfy_moss.pipeline.refine import composite, refine

# --- the interface ------------------------------------------------------------------------------------------


def test_both_families_have_every_member_that_the_pipeline_may_ask_for():
    members = {*Backbone.__annotations__, *(name for name in vars(Backbone) if not name.startswith("_"))}
    assert {"published", "code_map", "is_empty", "work", "model_id"} <= members
    for backbone in (tiny_hart_backbone(), tiny_backbone()):
        assert [name for name in members if not hasattr(backbone, name)] == []


# --- positions ----------------------------------------------------------------------------------------------


def test_places_are_measured_on_the_last_grid_behind_the_prompt_of_each_row():
    y, x = coordinates(Positions.of_scale(SCHEDULE, 3), SCHEDULE, torch.tensor([5.0, 0.0]))

    assert y.shape == (2, 16)
    # a grid of 4 on one of 8
    assert y[0, ::4].tolist() == [5, 7, 9, 11] and x[1, :4].tolist() == [0, 2, 4, 6]


def test_the_halves_of_a_head_are_mixed_across_rows_and_columns():
    """The first half is turned by the row's angle and takes from the second, which is turned by the column's.
    """
    positions = Positions(torch.full((1, 1), 5), torch.tensor([[3]]), torch.tensor([[0]]))
    cos, sin = picture_rotation(positions, SCHEDULE, torch.zeros(1), 8)
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0], x[..., 4] = 1.0, 10.0

    out = rotate(x, cos, sin)[0, 0, 0]

    assert out[0].item() == pytest.approx(math.cos(3) - 10 * math.sin(3), abs=1e-5)
    assert out[4].item() == pytest.approx(10.0, abs=1e-5)  # the column is 0


# --- drawing ------------------------------------------------------------------------------------------------


def test_guidance_grows_along_the_scales_and_stands_still_at_the_last():
    t = guidance_weights(Guidance(Ramp(5.5)), 14)
    assert t[:3].tolist() == pytest.approx([0, 4.5 / 13, 9 / 13]) and t[12] == t[13] == pytest.approx(
        4.5 * 12 / 13
    )
    assert guidance_weights(Guidance((1.0, 2.0, 4.0)), 3).tolist() == [0, 1, 3]
    assert progress(1).tolist() == [0.0]


def test_truncation_keeps_ties_and_never_the_unlikely():
    logits = torch.tensor([[[3.0, 1.0, 2.0, 2.0, -5.0]]])

    assert top_k_top_p(logits, 2, 0.0).isfinite().tolist() == [[[True, False, True, True, False]]]
    assert top_k_top_p(logits, 1, 0.0).isfinite().sum() == 1
    assert top_k_top_p(logits, 5, 0.5).isfinite().tolist() == [[[True, False, False, False, False]]]
    assert top_k_top_p(logits, [(9, 1)], 0.0).isfinite().all()


def test_codes_are_drawn_by_their_probability_and_removed_ones_never():
    logits = torch.tensor([0.0, -math.inf, math.log(3.0), -math.inf]).expand(1, 4000, 4)
    noise = (torch.arange(4000) + 0.5)[None] / 4000

    codes = draw_code(logits, noise)

    assert codes[0].bincount(minlength=4).tolist() == [1000, 0, 3000, 0]
    assert draw_code(logits[:, :2], torch.tensor([[0.0, 1.0]])).tolist() == [[0, 2]]  # both ends of the noise


def test_soft_mixes_sharpen_along_the_scales():
    logits, waiting = torch.zeros(1, 2, 3), torch.tensor([0.5, 1.0, 2.0]).expand(1, 2, 3)

    early, late = gumbel_softmax(logits, torch.tensor([0.0, 1.0]), waiting)[0]

    assert early.sum().item() == pytest.approx(1) and early.argmax() == late.argmax() == 0
    assert 0.9 < early[0] < 0.95 and late[0] > 1 - 1e-6  # temperatures 0.27 and 0.0135


def test_noise_of_other_shapes_has_their_moments_and_no_infinities():
    uniform = torch.cat([torch.tensor([0.0, 1.0]), (torch.arange(100_000) + 0.5) / 100_000])

    bell, waiting = normal(uniform), exponential(uniform)

    assert bell.isfinite().all() and waiting.isfinite().all() and (waiting > 0).all()
    assert bell[2:].mean().abs() < 1e-3 and bell[2:].std().item() == pytest.approx(1, abs=1e-3)
    assert waiting[2:].mean().item() == pytest.approx(1, abs=1e-3)


def test_passes_take_a_random_order_from_its_end_until_nothing_is_left():
    assert pass_sizes(64, 1) == [64] and pass_sizes(64, 3) == [9, 23, 32] and sum(pass_sizes(4096, 8)) == 4096
    order = torch.tensor([[2, 0, 3, 1]])
    assert pass_sizes(4, 2) == [2, 2] and pass_of(order, 2).tolist() == [[1, 0, 1, 0]]


def test_a_drawn_token_does_not_depend_on_which_others_are_drawn():
    """One refine scale: every token sees the draft and the others, but its noise is its own."""
    model = replace(tiny_hart_backbone(), smooth=False)
    positions = Positions.of_scale(SCHEDULE, 5)
    some = Positions(*(part[:, 10:20] for part in (positions.scale, positions.row, positions.col)))
    entries = 1 + TINY.codes + (TINY.diffusion_steps + 1) * TINY.channels

    assert torch.equal(bit_noise((3,), some, entries), bit_noise((3,), positions, entries)[:, 10:20])
    recipe = Recipe((prompt(0),), None, (0,), SCHEDULE, Guidance(1.0), Sampling(1.0, 0, 0.0))
    draft, cache = draw_draft(model, recipe, 5)
    ones, made_by = [Dispatch((5,), (torch.tensor([[cell]]),)) for cell in (7, 40)], RefinePass((5,), (1.0,))
    alone = [refine(model, draft, one, made_by, cache).bits[0] for one in ones]
    assert not torch.equal(*alone)


# --- residual -----------------------------------------------------------------------------------------------


def test_diffusion_steps_are_spread_over_the_schedule_in_training():
    steps = DiffusionSchedule.of(8)
    assert steps.times == (0, 143, 285, 428, 571, 714, 856, 999)
    assert steps.alphas_cumprod[-1].item() == pytest.approx(2.42876691e-09, rel=1e-6)
    with pytest.raises(ValueError, match="2 to 1000 steps, not 1"):
        DiffusionSchedule.of(1)


def test_residuals_are_bounded_and_each_token_has_its_own():
    net, steps = tiny_hart().diffloss["net"], DiffusionSchedule.of(4)
    generator = torch.Generator().manual_seed(0)
    z, other = (torch.randn(6, 32, generator=generator) for _ in range(2))
    noise = torch.randn(5, 6, 8, generator=generator)

    whole = draw_residual(net, steps, z, other, 3.0, noise)
    part = draw_residual(net, steps, z[2:4], other[2:4], 3.0, noise[:, 2:4])

    assert whole.abs().max() <= 0.6 and torch.allclose(part, whole[2:4], atol=1e-4)
    plain = draw_residual(net, steps, z, None, 0.0, noise)
    assert torch.allclose(draw_residual(net, steps, z, other, 0.0, noise), plain, atol=1e-4)
    assert torch.equal(draw_residual(net, steps, z, other, 1.0, noise), plain)  # as the model was run
    assert not torch.allclose(whole, plain, atol=1e-2)


def test_only_the_last_scale_has_a_residual():
    model, recipe = (
        tiny_hart_backbone(),
        Recipe((prompt(0),), None, (0,), SCHEDULE, Guidance(Ramp(5.5)), Sampling(1.0, 0, 0.0)),
    )
    with_residual, _ = draw_draft(model, recipe, 6)
    without, _ = draw_draft(replace(model, residual=False), recipe, 6)

    equal = [torch.equal(a, b) for a, b in zip(with_residual.bits, without.bits, strict=True)]
    assert equal == [True] * 5 + [False]
    assert (with_residual.bits[5] - without.bits[5]).abs().max() < 0.6 + 1e-5


# --- quantiser ----------------------------------------------------------------------------------------------


def test_phi_is_chosen_by_the_share_of_the_way_through_the_scales():
    assert [phi_index(n, 14, 4) for n in range(14)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [phi_index(n, 7, 4) for n in range(7)] == [0, 0, 1, 2, 2, 3, 3]  # ties fall as released


@pytest.mark.parametrize("hybrid", [False, True])
def test_what_scales_encode_sums_up_to_the_features_but_for_what_codes_cannot_say(hybrid: bool):
    quantizer = tiny_tokenizer(codes=400).quantize
    features = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))

    codes, totals, left = quantizer.quantize(features, TINY.sides, hybrid)

    assert [tuple(c.shape) for c in codes] == [(2, side * side) for side in TINY.sides]
    assert torch.allclose(left, features - totals[-2], atol=1e-6)
    last = quantizer.codebook[codes[-1]].transpose(1, 2).unflatten(2, (8, 8))
    assert torch.allclose(totals[-1] - totals[-2], last if hybrid else quantizer.phi(last, 5, 6), atol=1e-6)


def test_encoding_what_was_drawn_needs_the_schedules_last_side():
    with pytest.raises(ValueError, match="ends at 8 x 8 but the image encodes to 6 x 6"):
        tiny_tokenizer().quantize.quantize(torch.zeros(1, 8, 6, 6), TINY.sides)


def test_an_image_keeps_its_size_through_the_codec():
    vae = tiny_tokenizer()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = vae.encode(image)
    assert features.shape == (1, 8, 8, 8) and vae.decode(features).shape == image.shape


# --- MoSs ---------------------------------------------------------------------------------------------------


def test_a_partly_filled_scale_changes_only_its_region():
    """Bicubic weights and phi's bias reach beyond a cell; what nobody drew must stay as drafted."""
    model = tiny_hart_backbone()
    codes, filled = torch.zeros(1, 36, 8), torch.zeros(1, 36, dtype=torch.bool)
    codes[0, 14], filled[0, 14] = 1.0, True  # row 2, column 2 of a grid of 6

    added = model.code_map(codes, 4, SCHEDULE, filled)
    whole = model.code_map(codes, 4, SCHEDULE)

    cells = added[0].abs().amax(0).nonzero().tolist()
    assert cells == [[r, c] for r in (3,) for c in (3,)]  # the cell of the 8 x 8 map whose centre lies in it
    assert (whole[0].abs().amax(0) > 0).all() and torch.equal(added[0, :, 3, 3], whole[0, :, 3, 3])


def test_the_last_scale_is_added_to_exactly_its_cells():
    model, codes = tiny_hart_backbone(), torch.zeros(1, 64, 8)
    codes[0, 10] = 1.0
    assert model.code_map(codes, 5, SCHEDULE, codes[..., 0] > 0)[0].abs().amax(0).nonzero().tolist() == [
        [1, 2]
    ]


def test_the_refined_bands_leave_everything_else_as_drafted():
    model, recipe = (
        tiny_hart_backbone(),
        Recipe((prompt(0),), None, (0,), SCHEDULE, Guidance(Ramp(5.5)), Sampling(1.0, 0, 0.0)),
    )
    draft, cache = draw_draft(model, recipe, 4)
    dispatch = Dispatch((4, 5), (torch.tensor([[0, 1]]), torch.tensor([[62, 63]])))

    residual: Residual = refine(model, draft, dispatch, RefinePass.of_last((80.0, 55.0)), cache)
    changed = (composite(model, draft, residual).total - draft.total)[0].abs().amax(0) > 0

    # centres of cells 0 to 2 lie in the coarse two
    assert changed.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [7, 6], [7, 7]]


# --- arithmetic at 1024 x 1024 ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> HartBackbone:
    with torch.device("meta"):
        shape = HART_07B.transformer
        return HartBackbone(
            HartTransformer(shape), Tokenizer(HART_07B.codec, Quantizer(shape.codes, shape.channels))
        )


def test_tokens_and_cache_of_the_released_model(large: HartBackbone):
    schedule = HART_07B.schedule(1.0, "1M")
    per_position = 2 * 24 * 1536 * 2 * 4  # keys and values, both rows of guidance, float32

    assert (schedule.tokens(), schedule.tokens(0, 12), len(schedule)) == (9451, 3051, 14)
    # the draft of MoSs2: 300 slots stand in for 1
    assert large.cache_bytes(2, schedule.tokens(0, 12)) == 3350 * per_position
    # dense; the last scale is not kept
    assert large.cache_bytes(2, schedule.tokens(0, 13)) == 5654 * per_position


def test_bounds_of_80_and_55_refine_576_and_2253_tokens_counted_from_the_top():
    moss2 = RefinePass.of_last(HART_07B.published.bounds[2])
    assert moss2.counts(HART_07B.schedule(1.0, "1M")) == (576, 2253)


def test_moss2_takes_a_little_more_than_half_of_denses_multiply_adds(large: HartBackbone):
    schedule, work = HART_07B.schedule(1.0, "1M"), large.work
    plans = (Plan(0), Plan.moss((80.0, 55.0)))
    dense, moss2 = (
        sum(p.macs(work) for p in plan.forward_passes(schedule, True, work.prefix)) for plan in plans
    )

    assert dense == pytest.approx((13.25 + 8.83) * 1e12, rel=1e-3)
    assert moss2 == pytest.approx(12.0e12, rel=2e-3)
    assert 1 / share_of_dense(plans[1], schedule, work, guided=True) == pytest.approx(1.84, abs=0.005)


def test_a_cache_is_as_large_as_it_is_said_to_be():
    model, recipe = (
        tiny_hart_backbone(),
        Recipe((prompt(0),), None, (0,), SCHEDULE, Guidance(Ramp(5.5)), Sampling(1.0, 0, 0.0)),
    )
    _, cache = draw_draft(model, recipe, 4)
    assert cache.nbytes == model.cache_bytes(2, SCHEDULE.tokens(0, 4))


# --- what is refused ----------------------------------------------------------------------------------------


def test_text_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"6 tokens of 16 numbers and got \(7, 16\)"):
        tiny_hart().condition([PositionedText(torch.zeros(7, 16), torch.zeros(7))], None, True)
    with pytest.raises(ValueError, match=r"got \(6, 16\) without positions"):
        tiny_hart().condition([torch.zeros(6, 16)], None, True)


def test_guidance_inside_the_network_is_refused():
    recipe = Recipe(
        (prompt(0),), None, (0,), SCHEDULE, Guidance(Ramp(5.5), layers=(-1,)), Sampling(1.0, 0, 0.0)
    )
    with pytest.raises(ValueError, match="guided at its logits alone"):
        draw_draft(tiny_hart_backbone(), recipe, 1)


def test_values_that_are_not_numbers_are_told():
    model = tiny_hart_backbone()
    model.transformer.head.bias.data[3] = math.nan
    recipe = Recipe((prompt(0),), None, (0,), SCHEDULE, Guidance(Ramp(5.5)), Sampling(1.0, 0, 0.0))
    with pytest.raises(ValueError, match="not numbers"):
        draw_draft(model, recipe, 1)
