"""Plans: the exact limits of design, on nano's kind, a patchify model and HART, and the notation people
share.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import tiny_backbone
from hart_builders import tiny_hart_backbone
from test_hart_limits import SCHEDULE as HART_SCHEDULE
from test_hart_limits import make_recipe as hart_recipe
from test_limits import SCHEDULE, make_recipe

from comfy_moss.model.backbone import PAPER
from comfy_moss.pipeline.dispatch import RefinePass
from comfy_moss.pipeline.draft import draw_draft
from comfy_moss.pipeline.plan import Plan, parse_method, parse_plan, plan_of, run
from comfy_moss.pipeline.refine import composite, draw_pass, rebuild

KINDS = {
    "plain": (tiny_backbone, make_recipe, SCHEDULE),
    "patchify": (lambda: tiny_backbone(patchify=True), make_recipe, SCHEDULE),
    "hart": (tiny_hart_backbone, hart_recipe, HART_SCHEDULE),
}
TWO = "draft-3; -3@70; -1@45 unguided"


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    build, recipe, schedule = KINDS[request.param]
    return build(), recipe, schedule


@pytest.mark.parametrize("scales", [1, 3])
def test_whole_single_scale_passes_are_dense(kind, scales):
    model, recipe, schedule = kind
    passes = [RefinePass((n,), (100.0,)) for n in range(len(schedule) - scales, len(schedule))]

    drawn, dense = (run(model, recipe(), plan) for plan in (Plan(-scales, passes), Plan(0)))

    assert torch.equal(drawn.total, dense.total)
    assert drawn.cost.kv_bytes == dense.cost.kv_bytes
    assert drawn.cost.tokens_per_scale == dense.cost.tokens_per_scale


def test_scales_counted_from_the_first_or_from_the_end_are_the_same_plan(kind):
    model, recipe, schedule = kind
    size = len(schedule)
    ends, starts = (
        parse_plan("draft-3; -2@50; -1@30"), parse_plan(f"draft {size - 3}; {size - 2}@50; {size - 1}@30"),
    )
    assert torch.equal(run(model, recipe(), ends).total, run(model, recipe(), starts).total)


def test_the_papers_moss_is_one_pass_over_the_last_scales(kind):
    model, recipe, schedule = kind
    moss, plan = Plan.moss((80.0, 30.0)), parse_plan("draft-2; -2@80 -1@30")
    assert moss == plan and plan.label == "moss2"
    assert torch.equal(run(model, recipe(), moss).total, run(model, recipe(), plan).total)


def test_a_batch_is_its_single_runs_through_two_passes(kind):
    model, recipe, _ = kind
    # rounding may swap tokens that are equally busy
    plan = parse_plan(TWO.replace("70", "100").replace("45", "100"))
    together = run(model, recipe(2), plan).total
    for n in range(2):
        assert torch.allclose(together[n], run(model, recipe(1, first=n), plan).total[0], atol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_a_draft_after_passes_is_rebuilt_from_its_tokens_bit_for_bit(kind):
    model, recipe, schedule = kind
    picture = run(model, recipe(), parse_plan("draft-3; -3@70; -2@50; -1@45 unguided"))
    last = picture.passes[-1]  # its draft has two passes behind it

    again, rebuilt = rebuild(model, last.draft)

    assert torch.equal(again.total, last.draft.total)
    assert last.draft.cached_tokens == schedule.tokens(0, len(schedule) - 3) + sum(
        sum(residual.dispatch.counts) for residual in last.draft.passes
    )
    step = RefinePass((-1,), (45.0,), guidance=1.0)
    residual, _ = draw_pass(rebuilt, again, last.dispatch, step, store=False)
    assert torch.equal(composite(model, again, residual).total, picture.total)


def test_a_pass_sees_the_passes_before_it(kind):
    model, recipe, schedule = kind
    seen = run(model, recipe(), parse_plan("draft-3; -3@70; -1@45")).total
    blind = run(model, recipe(), parse_plan("draft-3; -3@70 -1@45")).total
    assert not torch.equal(seen, blind)


def test_memory_is_the_arithmetic(kind):
    model, recipe, schedule = kind
    for text in ("draft-3; -3@70; -1@45 unguided", "draft-2; -2@80 -1@30", "draft-3; -3@50; -2@40; -1@30"):
        plan = parse_plan(text)
        passed = [step.on(schedule).counts(schedule) for step in plan.passes[:-1]]
        stored = schedule.tokens(0, len(schedule) + plan.draft) + sum(map(sum, passed))
        assert run(model, recipe(), plan).cost.kv_bytes == model.cache_bytes(2, stored)


def test_guidance_of_a_pass_changes_that_pass_alone(kind):
    model, recipe, _ = kind
    plans = [parse_plan(f"draft-2; -2@60; -1@40{words}") for words in ("", " cfg 6", " unguided")]
    pictures = [run(model, recipe(), plan) for plan in plans]
    middle = [picture.passes[1].draft.total for picture in pictures]
    assert torch.equal(middle[0], middle[1]) and torch.equal(middle[0], middle[2])
    assert not torch.equal(pictures[0].total, pictures[1].total)
    assert not torch.equal(pictures[0].total, pictures[2].total)


def test_guidance_of_a_plan_is_the_recipes():
    model, recipe = tiny_backbone(), make_recipe()
    strong = replace(recipe, guidance=replace(recipe.guidance, cfg=5.0))
    ours, theirs = (
        run(model, recipe, parse_plan("draft-2 cfg 5; -1@40")),
        run(model, strong, parse_plan("draft-2; -1@40")),
    )
    assert torch.equal(ours.total, theirs.total)


def test_every_pass_makes_its_map_anew_and_a_mask_reaches_all_of_them():
    model, recipe = tiny_backbone(), make_recipe()
    maps = run(model, recipe, parse_plan("draft-3; -3@50; -1@20")).passes
    assert not torch.equal(maps[0].frequency, maps[1].frequency)
    painted = torch.zeros(1, 16, 16)
    painted[:, :4] = 1
    forced = run(model, recipe, parse_plan("draft-3; -3@25; -1@25"), painted=painted).passes
    for found in forced:
        h, w = SCHEDULE.grids[found.dispatch.scales[0]]
        assert found.dispatch.cells[0].max() < h * w // 4 + w


def test_progress_is_told_after_every_scale_and_pass():
    seen = []
    picture = run(
        tiny_backbone(), make_recipe(), parse_plan(TWO),
        on_scale=lambda done, scales, total: seen.append((done, total)),
    )
    size = len(SCHEDULE)
    assert [done for done, _ in seen] == [*range(1, size - 2), size - 2, size]
    assert torch.equal(seen[-1][1], picture.total)


def test_the_plan_of_a_draft_is_how_it_was_drawn():
    picture = run(tiny_backbone(), make_recipe(), parse_plan("draft-3; -3@70; -2@50; -1@45 unguided"))
    assert str(plan_of(picture.passes[-1].draft)) == "draft-3; -3@70; -2@50"
    assert plan_of(draw_draft(tiny_backbone(), make_recipe(), len(SCHEDULE))[0]).label == "dense"


# --- notation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "dense", "draft-4", "draft 7", "dense cfg 2", "draft-4; -4@80 -3@70 -2@30 -1@10",
        "draft-3; -1@45 unguided", "draft-4 cfg 3 window 5; -4@70 sa; -1@45 unguided strength 0.5",
        "draft 6; 6@33.3333333333333357 cfg 1.25",
    ],
)
def test_a_plan_reads_back_what_it_writes(text):
    plan = parse_plan(text)
    assert parse_plan(str(plan)) == plan
    assert str(parse_plan(str(plan))) == str(plan)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("DRAFT-3 ;  -1@45%  Unguided", "draft-3; -1@45 unguided"),
        ("draft-3; -1@45 cfg 1", "draft-3; -1@45 unguided"), ("draft-0", "dense"), ("draft-3;", "draft-3"),
        ("draft-3; -1@.5", "draft-3; -1@0.5"),
    ],
)
def test_small_differences_in_writing_mean_nothing(text, same):
    assert str(parse_plan(text)) == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with what is drafted"),
        ("moss; -1@45", "does not begin with what is drafted"),
        ("draft 0; -1@45", "does not begin with what is drafted"),
        ("draft-3; ; -1@45", "names no scale"),
        ("draft-3; unguided", "names no scale"),
        ("draft-3; -1@120", "percentages between 0 and 100"),
        ("draft-3; -2@20 -1@30", "must fall or stay equal"),
        ("draft-3; -1@45 quick", "'quick' in the plan"),
        ("draft-3; -1@45 cfg", "cfg in the plan .* needs a number"),
        ("draft-3; -1@45 cfg much", "cfg in the plan .* needs a number behind it, got 'much'"),
        ("draft-3; -1@45 cfg -2", "guidance of a pass must be 0 or more"),
        ("draft-3; -1@45 cfg nan", "guidance of a pass must be 0 or more"),
        ("draft-3; -1@45 strength 2", "strength must lie between 0 and 1"),
        ("draft-3; -1@45 cfg 3 unguided", "says both cfg and unguided"),
        ("draft-3 window 4; -1@45", "window must be odd"),
        ("draft-3 window 3.5; -1@45", "no whole number"),
        ("draft-3 cfg -1", "guidance of a plan must be 0 or more"),
        ("draft-3 speed 9", "'speed' in the plan"),
    ],
)
def test_every_wrong_plan_gets_a_sentence(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_plan(text)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("draft-20; -1@45", "leaves nothing to draw"),
        ("draft 99", "99 scales; this picture has 7 scales"),
        ("draft-3; -9@45", "a pass names the scales -9"),
        ("draft-3; 9@45", "a pass names the scales 9"),
        ("draft-3; 0@45", "the first is always drafted"),
        ("draft-3; -5@45", "cannot come after scale 3 was drawn"),
        ("draft-3; -1@45; -2@45", "redraws finer scales than all before it"),
        ("draft-3; -1@45 -2@45", "from coarse to fine, each once"),
        ("draft-3; -3@45 unguided; -1@45 cfg 3", "cannot follow a draft or a pass without guidance"),
        ("draft-3 cfg 1; -1@45 cfg 3", "cannot follow a draft or a pass without guidance"),
    ],
)
def test_a_plan_that_does_not_fit_the_schedule_gets_a_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        parse_plan(text).on(SCHEDULE)


def test_named_plans_and_plans_as_text_are_methods():
    for name, text in PAPER.plans.items():
        assert parse_method(name) == parse_method(text) == parse_plan(text)
    with pytest.raises(ValueError, match="have no use|has no use"):
        parse_method("sparse3", bounds=[50.0])
