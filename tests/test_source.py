"""A picture as input: the exact limits of taking scales, keeping places and blending the seam."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import tiny_backbone
from hart_builders import tiny_hart_backbone
from test_hart_limits import SCHEDULE as HART_SCHEDULE
from test_hart_limits import make_recipe as hart_recipe
from test_limits import SCHEDULE, make_recipe

from comfy_moss.pipeline.dispatch import RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import draw_draft
from comfy_moss.pipeline.fastvar import FastVARConfig
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.plan import Plan, generate, parse_plan, run
from comfy_moss.pipeline.refine import finish_dense, finished, rebuild
from comfy_moss.pipeline.source import (
    Source,
    encode_picture,
    fit_mask,
    fit_picture,
    mask_of,
    picture_size,
    seam,
)

KINDS = {
    "plain": (tiny_backbone, make_recipe, SCHEDULE),
    "patchify": (lambda: tiny_backbone(patchify=True), make_recipe, SCHEDULE),
    "hart": (tiny_hart_backbone, hart_recipe, HART_SCHEDULE),
}
PLANS = ("dense", "draft-2; -2@80 -1@30", "draft-3; -3@70; -1@45 unguided")


def pictures(model, schedule, count: int = 1) -> torch.Tensor:
    height, width = picture_size(model, schedule)
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    build, recipe, schedule = KINDS[request.param]
    model = build()
    return model, recipe, schedule, encode_picture(model, pictures(model, schedule), schedule)


def recoded(model, source: Source, schedule) -> torch.Tensor:
    """The sum of all codes of a picture: what the codec makes of it is this, decoded."""
    total = 0
    for scale, bits in enumerate(source.bits):
        total = total + model.code_map(model.codes(bits), scale, schedule)
    return total


def with_mask(source: Source, schedule, part: slice, **changes) -> Source:
    mask = torch.zeros(1, *schedule.grids[-1], dtype=torch.bool)
    mask[:, part, part] = True
    return replace(source, mask=mask, **changes)


def test_all_scales_are_the_codecs_reconstruction(kind):
    model, recipe, schedule, source = kind
    pixels = (2 * pictures(model, schedule) - 1).movedim(-1, 1)

    whole = replace(recipe(), source=replace(source, scales=len(schedule)))

    draft, _ = draw_draft(model, whole, len(schedule))

    assert torch.equal(draft.total, recoded(model, source, schedule))
    features = model.encode(pixels)
    if hasattr(model.vae, "quantize"):  # what codes cannot say is in the last scale's tokens
        assert torch.allclose(draft.total, features, atol=1e-5)
    else:
        from comfy_moss.model.quantize import quantize_scales

        grids = [model.map_grid(grid) for grid in schedule.grids]
        assert torch.equal(draft.total, quantize_scales(features, grids)[1])


@pytest.mark.parametrize("text", PLANS)
def test_no_scale_is_text_to_picture(kind, text):
    model, recipe, schedule, source = kind
    ours, theirs = (run(model, replace(recipe(), source=s), parse_plan(text)).total for s in (source, None))
    assert torch.equal(ours, theirs)


def test_some_scales_are_the_pictures_and_the_others_are_drawn(kind):
    model, recipe, schedule, source = kind
    draft, _ = draw_draft(model, replace(recipe(), source=replace(source, scales=3)), len(schedule))
    same = [torch.equal(a, b) for a, b in zip(draft.bits, source.bits, strict=True)]
    assert same == [True] * 3 + [False] * (len(schedule) - 3)


@pytest.mark.parametrize("text", PLANS)
def test_an_empty_mask_gives_the_pictures_codes(kind, text):
    model, recipe, schedule, source = kind
    drawn = run(model, replace(recipe(), source=with_mask(source, schedule, slice(0, 0))), parse_plan(text))
    assert torch.equal(drawn.total, recoded(model, source, schedule))
    assert drawn.cost.refine_tokens == 0


@pytest.mark.parametrize("text", PLANS)
def test_a_full_mask_is_no_mask(kind, text):
    model, recipe, schedule, source = kind
    full, none = (with_mask(source, schedule, slice(None)), None)
    ours, theirs = (run(model, replace(recipe(), source=s), parse_plan(text)) for s in (full, none))
    assert torch.equal(ours.total, theirs.total)
    assert ours.cost.tokens_per_scale == theirs.cost.tokens_per_scale


@pytest.mark.parametrize("text", [*PLANS, "draft-2"])
def test_places_away_from_the_mask_are_the_pictures_codes_exactly(kind, text):
    model, recipe, schedule, source = kind
    masked = with_mask(source, schedule, slice(0, 1))
    own = recoded(model, source, schedule)

    total = run(model, replace(recipe(), source=masked), parse_plan(text)).total

    away = (seam(masked.mask, total.shape[-2:]) == 1).expand_as(total)
    assert away.any() and torch.equal(total[away], own[away])
    inside = ~away & (seam(masked.mask, total.shape[-2:]) == 0)
    assert not torch.equal(total[inside], own[inside])


def test_fastvar_keeps_places_away_from_the_mask_too(kind):
    model, recipe, schedule, source = kind
    masked = with_mask(source, schedule, slice(0, 1))
    method = FastVARConfig(skip=1, prune=(0.5,), first_layer=0, last_layer=None)
    total = generate(model, replace(recipe(), source=masked), method).total
    away = (seam(masked.mask, total.shape[-2:]) == 1).expand_as(total)
    assert torch.equal(total[away], recoded(model, source, schedule)[away])


def test_only_masked_places_are_dispatched_and_bounds_are_percent_of_them(kind):
    model, recipe, schedule, source = kind
    masked = with_mask(source, schedule, slice(1, schedule.grids[-1][0] - 1))
    frequency = frequency_map(recoded(model, source, schedule))
    for bound in (100.0, 40.0):
        dispatch = dispatch_tokens(frequency, schedule, RefinePass((-1,), (bound,)), source=masked)
        open_cells = masked.mask.flatten(1).nonzero()[:, 1]
        assert dispatch.counts == (int(len(open_cells) * bound / 100 + 0.5),)
        assert set(dispatch.cells[0].flatten().tolist()) <= set(open_cells.tolist())


def test_refining_a_picture_keeps_its_own_codes_where_no_pass_redraws(kind):
    model, recipe, schedule, source = kind
    whole = replace(source, scales=len(schedule) - 2)
    own = recoded(model, source, schedule)
    assert torch.equal(run(model, replace(recipe(), source=whole), parse_plan("draft-2")).total, own)

    picture = run(model, replace(recipe(), source=whole), parse_plan("draft-2; -1@10"))

    changed = (picture.total != own).any(1).flatten(1).sum()
    cells = picture.passes[0].dispatch.counts[0] * (4 if getattr(model, "patchify", False) else 1)
    assert 0 < changed <= 41 * cells  # the seam reaches four cells


def test_a_masked_draft_is_rebuilt_and_finished_bit_for_bit(kind):
    model, recipe, schedule, source = kind
    recipe = replace(recipe(), source=with_mask(source, schedule, slice(0, 2)))
    draft, cache = draw_draft(model, recipe, len(schedule) - 2)
    again, _ = rebuild(model, draft)
    dense, _ = draw_draft(model, recipe, len(schedule))

    assert torch.equal(again.total, draft.total)
    assert torch.equal(finish_dense(model, draft, cache)[0].total, dense.total)
    assert torch.equal(finished(model, dense), dense.total)


def test_a_batch_is_its_single_pictures(kind):
    model, recipe, schedule, _ = kind
    images = pictures(model, schedule, 2)
    source = with_mask(encode_picture(model, images, schedule), schedule, slice(0, 2), scales=2)
    both = run(model, replace(recipe(2), source=source), Plan(0)).total
    for n in range(2):
        one = replace(encode_picture(model, images[n : n + 1], schedule), scales=2, mask=source.mask)
        alone = run(model, replace(recipe(1, first=n), source=one), Plan(0)).total[0]
        assert torch.allclose(both[n], alone, atol=1e-3)


# --- masks and sizes ----------------------------------------------------------------------------------------


def test_the_seam_fades_over_four_cells_and_is_hard_for_large_masks():
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert seam(mask, (16, 16))[0, 0, 0, :7].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert seam(mask, (16, 16))[0, 0, 1, :6].tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    mask[0, :8] = True
    assert seam(mask, (16, 16))[0, 0, :, 0].tolist() == [0] * 8 + [1] * 8


def test_a_cell_counts_as_masked_from_a_fifth_on_and_an_empty_mask_is_told():
    painted = torch.zeros(1, 160, 160)
    painted[:, :4, :5] = 1  # 20 % of the first cell of 10 x 10 pixels
    assert mask_of(painted, SCHEDULE).sum() == 1
    painted[:, :4, 4] = 0
    with pytest.raises(ValueError, match="mask is empty"):
        mask_of(painted, SCHEDULE)


def test_pictures_are_fitted_as_asked_and_left_alone_where_they_fit():
    image = torch.rand(1, 40, 80, 3)
    assert fit_picture(image, (40, 80)) is not None and torch.equal(fit_picture(image, (40, 80)), image)
    assert torch.equal(fit_picture(image, (40, 40), "crop"), image[:, :, 20:60])
    padded = fit_picture(image, (80, 80), "pad")
    assert torch.equal(padded[:, 20:60], image) and (padded[:, :20] == 0.5).all()
    assert fit_picture(image, (32, 64), "stretch").shape == (1, 32, 64, 3)


def test_a_mask_follows_its_picture_and_another_shape_is_told():
    mask = torch.zeros(1, 40, 80)
    mask[:, :, 20:40] = 1
    assert torch.equal(fit_mask(mask, (40, 80), (40, 40)), mask[:, :, 20:60])
    assert torch.equal(fit_mask(mask[:, ::2, ::2], (40, 80), (40, 80)), mask)
    assert fit_mask(torch.ones(1, 40, 80), (40, 80), (80, 80), "pad").sum() == 40 * 80
    with pytest.raises(ValueError, match="80 x 40 pixels and the picture 64 x 64"):
        fit_mask(mask, (64, 64), (64, 64))


def test_a_picture_smaller_than_a_cell_is_told():
    with pytest.raises(ValueError, match="7 x 9 pixels, smaller than one cell"):
        fit_picture(torch.rand(1, 9, 7, 3), (64, 64), least=8)
