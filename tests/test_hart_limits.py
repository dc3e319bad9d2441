"""Exact limits of HART: settings in which two methods must give the same picture, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hart_builders import SCHEDULE, TINY, prompt, tiny_hart_backbone

from comfy_moss.model.sampling import Guidance, Ramp, Sampling
from comfy_moss.pipeline.dispatch import Dispatch, RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import Draft, Recipe, draw_draft
from comfy_moss.pipeline.fastvar import FastVARConfig, finish_fastvar
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.refine import composite, finish_dense, rebuild, refine

SCALES = len(SCHEDULE)
FINE = [80.0, 55.0]


def make_recipe(batch: int = 1, first: int = 0, **changes) -> Recipe:
    numbers = range(first, first + batch)
    text = tuple(prompt(n, tokens=2 + n % 4) for n in numbers)
    recipe = Recipe(text, None, tuple(numbers), SCHEDULE, Guidance(Ramp(5.5)), Sampling(1.0, 0, 0.0))
    return replace(recipe, **changes)


def moss(backbone, draft: Draft, bounds, cache=None, **how) -> torch.Tensor:
    made_by = RefinePass.of_last(bounds, **how)
    dispatch = dispatch_tokens(frequency_map(draft.total), draft.recipe.schedule, made_by)
    return composite(backbone, draft, refine(backbone, draft, dispatch, made_by, cache)).total


@pytest.fixture(
    scope="module", params=[{}, {"smooth": False}, {"passes": 3}], ids=["smooth", "hard", "passes"]
)
def model(request):
    return replace(tiny_hart_backbone(), **request.param)


def test_one_refine_scale_with_every_token_is_the_dense_last_step(model):
    draft, cache = draw_draft(model, make_recipe(), SCALES - 1)

    whole, _ = finish_dense(model, draft, cache)

    assert torch.equal(moss(model, draft, [100.0], cache=cache), whole.total)
    assert not torch.equal(whole.total, draft.total)


def test_a_draft_of_all_scales_is_the_plain_model(model):
    whole, cache = draw_draft(model, make_recipe(), SCALES)
    for scales in (1, 3, 5):
        finished, grown = finish_dense(model, *draw_draft(model, make_recipe(), scales))

        assert all(torch.equal(a, b) for a, b in zip(finished.bits, whole.bits, strict=True))
        assert torch.equal(finished.total, whole.total)
        assert grown.lengths == cache.lengths


def test_guidance_of_one_is_no_guidance_pass(model):
    off = make_recipe(guidance=Guidance(1.0))
    # guided rows exist, the last scale uses them
    almost = make_recipe(guidance=Guidance((1.0,) * (SCALES - 1) + (3.0,)))

    plain, small = draw_draft(model, off, SCALES - 1)
    guided, large = draw_draft(model, almost, SCALES - 1)

    assert large.nbytes == 2 * small.nbytes
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain.bits, guided.bits, strict=True))


def test_a_batch_is_its_single_runs(model):
    """With one dispatch for both: rounding may swap tokens that are equally busy."""
    together, _ = draw_draft(model, make_recipe(3), SCALES - 2)
    made_by = RefinePass.of_last(FINE)
    dispatch = dispatch_tokens(frequency_map(together.total), SCHEDULE, made_by)
    drawn = composite(model, together, refine(model, together, dispatch, made_by)).total
    for n in range(3):
        alone, _ = draw_draft(model, make_recipe(1, first=n), SCALES - 2)
        part = Dispatch(dispatch.scales, tuple(cells[n : n + 1] for cells in dispatch.cells))
        single = composite(model, alone, refine(model, alone, part, made_by)).total

        assert torch.allclose(alone.total[0], together.total[n], atol=1e-5)
        assert torch.allclose(single[0], drawn[n], atol=1e-3)
        assert not torch.allclose(single[0], drawn[n - 1], atol=0.1)


def test_the_draft_is_the_same_for_every_k(model):
    whole, _ = draw_draft(model, make_recipe(), SCALES)
    for k in range(1, 5):
        draft, _ = draw_draft(model, make_recipe(), SCALES - k)

        assert all(torch.equal(a, b) for a, b in zip(draft.bits, whole.bits, strict=False))


def test_refining_changes_neither_the_draft_nor_its_cache(model):
    draft, cache = draw_draft(model, make_recipe(), SCALES - 2)

    first = moss(model, draft, FINE, cache=cache)
    other = moss(model, draft, [100, 100], cache=cache)
    again = moss(model, draft, FINE, cache=cache)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_rebuilt_cache_gives_the_same_numbers(model):
    draft, cache = draw_draft(model, make_recipe(2), 4)

    rebuilt = rebuild(model, draft)[1].cache

    assert rebuilt.lengths == cache.lengths == [TINY.text_length + 4 + 9 + 16] * model.depth
    for layer in range(model.depth):
        assert all(torch.equal(a, b) for a, b in zip(rebuilt.view(layer), cache.view(layer), strict=True))


def test_cross_scale_attention_matters_only_between_scales():
    model = tiny_hart_backbone()
    one, one_cache = draw_draft(model, make_recipe(), SCALES - 1)
    two, two_cache = draw_draft(model, make_recipe(), SCALES - 2)

    seen, unseen = (moss(model, one, [60.0], one_cache, cross_scale=on) for on in (True, False))
    assert torch.allclose(seen, unseen, atol=1e-5)
    together, alone = (moss(model, two, [90, 60], two_cache, cross_scale=on) for on in (True, False))
    assert not torch.allclose(together, alone, atol=1e-3)


def test_without_guidance_in_refine_only_the_prompts_rows_run(model):
    unguided = make_recipe(guidance=Guidance(1.0))
    draft, cache = draw_draft(model, make_recipe(), SCALES - 2)
    same, _ = draw_draft(model, unguided, SCALES - 2, given=draft.bits)

    off = moss(model, draft, FINE, cache, guidance=False)

    assert torch.allclose(off, moss(model, same, FINE), atol=1e-3)
    assert not torch.equal(off, moss(model, draft, FINE, cache=cache))


def test_fastvar_without_pruning_is_dense(model):
    dense, _ = draw_draft(model, make_recipe(), SCALES)

    fast, _, tokens = finish_fastvar(
        model, make_recipe(), FastVARConfig(skip=0, prune=(0.0, 0.0), first_layer=0)
    )

    assert torch.equal(fast.total, dense.total)
    assert tokens == [h * w for h, w in SCHEDULE.grids]


def test_fastvar_prunes_the_last_two_scales_as_published(model):
    draft, cache, tokens = finish_fastvar(model, make_recipe())

    assert tokens == [1, 4, 9, 16, 18, 16]  # half of 36, a quarter of 64
    assert cache.lengths == [TINY.text_length + 4 + 9 + 16 + 18] * model.depth
    assert not torch.equal(draft.total, draw_draft(model, make_recipe(), SCALES)[0].total)


def test_an_empty_dispatch_leaves_the_draft(model):
    draft, cache = draw_draft(model, make_recipe(), SCALES - 2)

    assert torch.equal(moss(model, draft, [0, 0], cache=cache), draft.total)
