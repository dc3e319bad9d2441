"""Edits by another prompt: equal prompts change nothing, what changes is found, and the rest stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import tiny_backbone
from hart_builders import tiny_hart_backbone
from test_hart_limits import SCHEDULE as HART_SCHEDULE
from test_hart_limits import make_recipe as hart_recipe
from test_limits import SCHEDULE, make_recipe
from test_source import pictures, recoded

from comfy_moss.pipeline.draft import draw_draft
from comfy_moss.pipeline.edit import edit_draft
from comfy_moss.pipeline.fastvar import FastVARConfig
from comfy_moss.pipeline.plan import generate, parse_plan, run
from comfy_moss.pipeline.refine import rebuild
from comfy_moss.pipeline.source import Edit, Source, encode_picture, seam

TARGET, BEFORE = make_recipe(1), make_recipe(1, first=1)
SIZE = len(SCHEDULE)
PLANS = ("dense", "draft-2; -2@80 -1@30", "draft-3; -1@45 unguided")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "patchify"])
def model(request):
    return tiny_backbone(patchify=request.param)


def edited(model, edit: Edit, plan: str, **source):
    found = replace(encode_picture(model, pictures(model, SCHEDULE), SCHEDULE), edit=edit, **source)
    return run(model, replace(TARGET, source=found), parse_plan(plan)), found


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("rule", ["shift", "gate"])
def test_equal_prompts_return_the_picture(model, rule, plan):
    picture, source = edited(model, Edit(TARGET.text, 1, 4, rule), plan)
    assert torch.equal(picture.total, recoded(model, source, SCHEDULE))
    assert not picture.change.any() and picture.cost.refine_tokens == 0


@pytest.mark.parametrize("rule", ["shift", "gate"])
def test_equal_prompts_return_a_draft_that_was_drawn_from_text(model, rule):
    drawn, _ = draw_draft(model, TARGET, SIZE - 2)
    source = Source(drawn.bits, edit=Edit(TARGET.text, 1, SIZE - 2, rule))
    _, again, _ = edit_draft(model, replace(TARGET, source=source), SIZE - 2)
    assert torch.equal(again.total, drawn.total)


@pytest.mark.parametrize("rule", ["shift", "gate"])
def test_another_prompt_changes_what_it_may_and_the_first_scales_stay(model, rule):
    picture, source = edited(model, Edit(BEFORE.text, 2, 4, rule, gate=0.05), "dense")
    recipe = replace(TARGET, source=source)
    _, draft, change = edit_draft(model, recipe, SIZE)

    assert torch.equal(draft.total, picture.total) and torch.equal(change, picture.change)
    same = [torch.equal(a, b) for a, b in zip(draft.bits, source.bits, strict=True)]
    assert same[:2] == [True, True] and not all(same[2:4]) and change.any()


def test_places_that_did_not_change_keep_the_pictures_finer_codes(model):
    picture, source = edited(model, Edit(BEFORE.text, 2, 4, "gate", gate=0.3, found=0.5), "draft-2; -1@100")
    draft = picture.passes[0].draft
    found = draft.recipe.source
    assert found.first == 4 and found.mask.any() and not found.mask.all()
    away = seam(found.mask, picture.total.shape[-2:])[0, 0] == 1
    finer = replace(source, scales=0, edit=None)
    own = sum(
        model.code_map(model.codes(finer.bits[s]), s, SCHEDULE) for s in range(draft.scales, SIZE)
    )
    assert torch.allclose((picture.total - draft.total)[..., away], own[..., away], atol=1e-5)
    assert picture.cost.refine_tokens == int((~found.kept(SCHEDULE.grids[-1])).sum())


def test_without_a_found_mask_all_places_are_drawn_anew(model):
    free, _ = edited(model, Edit(BEFORE.text, 2, 4, "shift", found=0.0), "draft-2")
    held, _ = edited(model, Edit(BEFORE.text, 2, 4, "shift", found=0.8), "draft-2")
    assert not torch.equal(free.total, held.total)


def test_an_edited_draft_is_rebuilt_from_its_tokens(model):
    source = encode_picture(model, pictures(model, SCHEDULE), SCHEDULE)
    recipe = replace(TARGET, source=replace(source, edit=Edit(BEFORE.text, 1, 3, "shift")))
    live, draft, _ = edit_draft(model, recipe, SIZE - 2)
    again, rebuilt = rebuild(model, draft)
    assert torch.equal(again.total, draft.total)
    for layer in range(model.depth):
        for ours, theirs in zip(rebuilt.cache.view(layer), live.cache.view(layer), strict=True):
            assert torch.equal(ours, theirs)


def test_a_given_mask_holds_at_every_scale(model):
    mask = torch.zeros(1, *SCHEDULE.grids[-1], dtype=torch.bool)
    mask[:, :1, :1] = True
    picture, source = edited(model, Edit(BEFORE.text, 1, 4, "shift"), "draft-2; -1@45", mask=mask)
    away = (seam(mask, picture.total.shape[-2:]) == 1).expand_as(picture.total)
    assert torch.equal(picture.total[away], recoded(model, source, SCHEDULE)[away])


def test_a_method_that_cannot_follow_an_edit_says_so(model):
    edit = Edit(BEFORE.text, 1, 4, "gate")
    found = replace(encode_picture(model, pictures(model, SCHEDULE), SCHEDULE), edit=edit)
    with pytest.raises(ValueError, match="an edit by words cannot be drawn by fastvar"):
        generate(model, replace(TARGET, source=found), FastVARConfig())


def test_a_model_without_bits_says_so():
    model = tiny_hart_backbone()
    source = encode_picture(model, pictures(model, HART_SCHEDULE), HART_SCHEDULE)
    recipe = replace(hart_recipe(), source=replace(source, edit=Edit(hart_recipe(1, first=1).text)))
    with pytest.raises(ValueError, match="draws codes of a codebook and has no bits to edit"):
        edit_draft(model, recipe, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preserve": 5, "follow": 3}, "got 5 with follow 3"),
        ({"rule": "magic"}, "shift or gate, got 'magic'"),
        ({"gate": 1.5}, "gate must lie between 0 and 1, got 1.5"),
        ({"found": float("nan")}, "found must lie between 0 and 1"),
    ],
)
def test_impossible_settings_are_told(wrong, message):
    with pytest.raises(ValueError, match=message):
        Edit(TARGET.text, **wrong)
