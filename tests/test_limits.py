"""Exact limits: settings in which two methods must give the same picture, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import tiny_backbone

from comfy_moss.model.backbone import PAPER_BOUNDS
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.dispatch import RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import Draft, Recipe, draw_draft
from comfy_moss.pipeline.fastvar import FastVARConfig, finish_fastvar
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.refine import composite, finish_dense, rebuild, refine

SCHEDULE = make_schedule(1.0, "0.06M")


def make_recipe(batch: int = 1, first: int = 0, schedule=SCHEDULE, **changes) -> Recipe:
    texts = [
        torch.randn(4 + n, 32, generator=torch.Generator().manual_seed(100 + n))
        for n in range(first, first + batch)
    ]
    recipe = Recipe(tuple(texts), None, tuple(range(first, first + batch)), schedule)
    return replace(recipe, **changes)


def moss(backbone, draft: Draft, bounds, cache=None, **how) -> torch.Tensor:
    made_by = RefinePass.of_last(bounds, **how)
    dispatch = dispatch_tokens(frequency_map(draft.total), draft.recipe.schedule, made_by)
    return composite(backbone, draft, refine(backbone, draft, dispatch, made_by, cache)).total


@pytest.fixture(scope="module", params=["plain", "patchify", "int8"])
def model(request):
    """The limits are exact for a KV cache in 8 bits as well: what a pass draws does not see itself in it."""
    return replace(tiny_backbone(patchify=request.param == "patchify"), int8_cache=request.param == "int8")


def test_one_refine_scale_with_every_token_is_the_dense_last_step(model):
    draft, cache = draw_draft(model, make_recipe(), len(SCHEDULE) - 1)

    whole, _ = finish_dense(model, draft, cache)

    assert torch.equal(moss(model, draft, [100.0], cache=cache), whole.total)
    assert not torch.equal(whole.total, draft.total)


def test_a_draft_of_all_scales_is_plain_infinity(model):
    whole, _ = draw_draft(model, make_recipe(), len(SCHEDULE))
    for scales in (1, 3, 6):
        finished, _ = finish_dense(model, *draw_draft(model, make_recipe(), scales))

        assert all(torch.equal(a, b) for a, b in zip(finished.bits, whole.bits, strict=True))
        assert torch.equal(finished.total, whole.total)


def test_guidance_of_one_is_no_guidance_pass(model):
    off = make_recipe(guidance=Guidance(1.0))
    # guided rows exist, but only the last scale uses them
    almost = make_recipe(guidance=Guidance((1.0,) * 6 + (3.0,)))

    plain, small = draw_draft(model, off, 6)
    guided, large = draw_draft(model, almost, 6)

    assert large.nbytes == 2 * small.nbytes
    assert all(torch.equal(a, b) for a, b in zip(plain.bits, guided.bits, strict=True))


def test_fastvar_without_pruning_is_dense(model):
    dense, _ = draw_draft(model, make_recipe(), len(SCHEDULE))

    fast, _, tokens = finish_fastvar(
        model, make_recipe(), FastVARConfig(skip=0, prune=(0.0, 0.0), first_layer=0)
    )

    assert torch.equal(fast.total, dense.total)
    assert tokens == [h * w for h, w in SCHEDULE.grids]


def test_fastvar_prunes_at_every_ratio():
    model = tiny_backbone()
    for ratio in (1.0, 0.571, 1.5, 3.0):
        recipe = make_recipe(schedule=make_schedule(ratio, "0.06M"))
        grids = [h * w for h, w in recipe.schedule.grids]

        draft, cache, tokens = finish_fastvar(model, recipe, FastVARConfig(first_layer=1))
        dense, _ = draw_draft(model, recipe, 5)

        assert tokens == [*grids[:3], grids[3] - int(0.4 * grids[3]), grids[4] - int(0.5 * grids[4]), 0, 0]
        assert cache.lengths[0] - cache.lengths[1] == int(0.4 * grids[3])
        assert not torch.equal(draft.total, dense.total)


@pytest.mark.parametrize("method", ["dense", "moss", "fastvar"])
def test_a_batch_is_its_single_runs(method):
    model = tiny_backbone()

    def draw(recipe: Recipe) -> torch.Tensor:
        if method == "fastvar":
            return finish_fastvar(model, recipe, FastVARConfig(first_layer=1))[0].total
        draft, cache = draw_draft(model, recipe, 7 if method == "dense" else 3)
        return draft.total if method == "dense" else moss(model, draft, PAPER_BOUNDS[4], cache=cache)

    together = draw(make_recipe(4))
    single = torch.cat([draw(make_recipe(1, first=n)) for n in range(4)])

    assert torch.allclose(together, single, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_the_draft_is_the_same_for_every_k(model):
    whole, _ = draw_draft(model, make_recipe(), len(SCHEDULE))
    for k in range(1, 6):
        draft, _ = draw_draft(model, make_recipe(), len(SCHEDULE) - k)

        assert all(torch.equal(a, b) for a, b in zip(draft.bits, whole.bits, strict=False))


def test_refining_changes_neither_the_draft_nor_its_cache(model):
    draft, cache = draw_draft(model, make_recipe(), 4)

    first = moss(model, draft, [80, 40, 10], cache=cache)
    other = moss(model, draft, [100, 100, 100], cache=cache)
    again = moss(model, draft, [80, 40, 10], cache=cache)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_rebuilt_cache_gives_the_same_numbers(model):
    draft, cache = draw_draft(model, make_recipe(2), 4)

    rebuilt = rebuild(model, draft)[1].cache

    assert rebuilt.lengths == cache.lengths == [sum(h * w for h, w in SCHEDULE.grids[:4])] * model.depth
    for layer in range(model.depth):
        assert all(torch.equal(a, b) for a, b in zip(rebuilt.view(layer), cache.view(layer), strict=True))


def test_cross_scale_attention_matters_only_between_scales(model):
    one, one_cache = draw_draft(model, make_recipe(), 6)
    two, two_cache = draw_draft(model, make_recipe(), 5)

    assert torch.equal(
        moss(model, one, [60.0], cache=one_cache), moss(model, one, [60.0], one_cache, cross_scale=False)
    )
    assert not torch.equal(
        moss(model, two, [90, 60], cache=two_cache), moss(model, two, [90, 60], two_cache, cross_scale=False)
    )


def test_without_guidance_in_refine_only_the_prompts_rows_run(model):
    unguided = make_recipe(guidance=Guidance(1.0))
    draft, cache = draw_draft(model, make_recipe(), 5)
    same_bits, _ = draw_draft(model, unguided, 5, given=draft.bits)

    off = moss(model, draft, [90, 60], cache, guidance=False)

    assert torch.equal(off, moss(model, same_bits, [90, 60]))
    assert not torch.equal(off, moss(model, draft, [90, 60], cache=cache))


def test_given_bits_replace_drawn_ones(model):
    draft, _ = draw_draft(model, make_recipe(), 3)
    given = tuple(1 - b for b in draft.bits[:2])

    forced, _ = draw_draft(model, make_recipe(), 3, given=given)

    assert torch.equal(forced.bits[1], given[1])
    assert not torch.equal(forced.bits[2], draft.bits[2])


def test_a_dispatch_for_another_draft_is_refused(model):
    draft, cache = draw_draft(model, make_recipe(), 5)
    finer = draw_draft(model, make_recipe(), 6)[0]
    made_by = RefinePass.of_last((50.0, 50.0))
    dispatch = dispatch_tokens(frequency_map(draft.total), SCHEDULE, made_by)

    with pytest.raises(
        ValueError, match="redraws scales from 5 on in 1 pictures, but the draft .* left: 6 to 6"
    ):
        refine(model, finer, dispatch, made_by, cache)


def test_an_empty_dispatch_leaves_the_draft(model):
    draft, cache = draw_draft(model, make_recipe(), 5)

    assert torch.equal(moss(model, draft, [0, 0], cache=cache), draft.total)
