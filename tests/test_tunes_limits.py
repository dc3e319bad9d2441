"""Exact limits of Infinity's fine-tunes: settings in which two ways must give the same picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_limits import moss
from tune_builders import ENLARGED, SMALL, edit_recipe, enlarge_recipe, tiny_edit, tiny_enlarge, words

from comfy_moss.benchmarks.limits import check_limits
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import make_schedule
from comfy_moss.ops import TORCH
from comfy_moss.pipeline.draft import draft_of, draw_draft
from comfy_moss.pipeline.fastvar import FastVARConfig, finish_fastvar
from comfy_moss.pipeline.plan import parse_method, run
from comfy_moss.pipeline.refine import KVStore, finish_dense, rebuild


@pytest.fixture(scope="module", params=["edit", "edit without patchify", "enlarge"])
def tune(request):
    """A model, how to ask it for pictures, and its schedule."""
    if request.param == "enlarge":
        return tiny_enlarge(), enlarge_recipe, ENLARGED
    model = tiny_edit(patchify=request.param == "edit")
    return model, lambda *batch, **changes: edit_recipe(model, *batch, **changes), SMALL


def test_a_whole_scale_pass_is_the_dense_step(tune):
    model, recipe, schedule = tune
    draft, cache = draw_draft(model, recipe(), len(schedule) - 1)

    whole, _ = finish_dense(model, draft, cache)

    assert torch.equal(moss(model, draft, [100.0], cache=cache), whole.total)
    assert not torch.equal(whole.total, draft.total)


def test_a_finished_draft_is_the_plain_model(tune):
    model, recipe, schedule = tune
    whole, _ = draw_draft(model, recipe(), len(schedule))
    given = len(recipe().condition(model).given)
    for scales in {max(given, 1), max(given, 4), len(schedule) - 1}:
        finished, _ = finish_dense(model, *draw_draft(model, recipe(), scales))

        assert all(torch.equal(a, b) for a, b in zip(finished.bits, whole.bits, strict=True))
        assert torch.equal(finished.total, whole.total)


@pytest.mark.parametrize("plan", ["moss5", "moss2", "two passes", "sa", "unguided"])
def test_a_batch_of_two_is_two_runs(tune, plan):
    model, recipe, _ = tune
    texts = {"two passes": "draft-3; -3@60; -1@40 unguided", "sa": "moss3-sa", "unguided": "moss2-unguided"}
    method = parse_method(texts.get(plan, plan))

    together = run(model, recipe(2), method).total
    single = torch.cat([run(model, recipe(1, n), method).total for n in range(2)])

    assert torch.allclose(together, single, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_another_seed_with_kept_prompts_is_a_fresh_run(tune):
    model, recipe, schedule = tune
    store, scales = KVStore(), len(schedule) - 2
    tokens = schedule.tokens(0, scales)
    draft_of(store.begin(model, recipe(), tokens), scales)
    kept = store.prompts_of(recipe(seeds=(5,)))

    run_again = store.begin(model, recipe(seeds=(5,)), tokens)
    second, (fresh, _) = draft_of(run_again, scales), draw_draft(model, recipe(seeds=(5,)), scales)

    assert run_again.condition is kept
    assert torch.equal(second.total, fresh.total)
    assert store.prompts_of(recipe(1, 1)) is None


def test_a_rebuilt_cache_holds_the_same_numbers(tune):
    model, recipe, schedule = tune
    draft, cache = draw_draft(model, recipe(2), len(schedule) - 2)

    rebuilt = rebuild(model, draft)[1].cache

    for layer in range(model.depth):
        assert all(torch.equal(a, b) for a, b in zip(rebuilt.view(layer), cache.view(layer), strict=True))


def test_fastvar_without_pruning_is_dense(tune):
    model, recipe, schedule = tune
    dense, _ = draw_draft(model, recipe(), len(schedule))

    fast, _, _ = finish_fastvar(model, recipe(), FastVARConfig(skip=0, prune=(0.0, 0.0), first_layer=0))

    assert torch.allclose(fast.total, dense.total, atol=1e-5)


def test_the_source_and_the_instruction_matter():
    model = tiny_edit()
    recipe, other = edit_recipe(model), edit_recipe(model, 1, 1)
    text = recipe.text[0]
    pictures = [
        draw_draft(model, replace(recipe, text=(one,)), 7)[0].total
        for one in (text, text._replace(picture=other.text[0].picture), text._replace(features=words(3)))
    ]

    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])


def test_a_pass_of_several_scales_hides_the_copies_of_other_scales():
    """In block 0 each scale sees the source at its own grid; in the others all of it."""
    model, shapes = tiny_edit(), []

    def attend(q, segments, visible=None):
        shapes.append((q.shape[2], sum(k.shape[2] for k, _ in segments)))
        return model.kernels.cross_scale_attention(q, segments, visible)

    watched = replace(model, kernels=replace(model.kernels, cross_scale_attention=attend))
    draft, cache = draw_draft(model, edit_recipe(model), 5)
    moss(watched, draft, [60.0, 40.0], cache=cache)
    shapes = shapes[model.depth :]  # behind the source's own pass

    past, tokens = SMALL.tokens(0, 5), [n for n, _ in shapes[:2]]
    assert shapes[:2] == [(tokens[0], 144 + past + sum(tokens)), (tokens[1], 256 + past + sum(tokens))]
    assert shapes[2:] == [(sum(tokens), 256 + past + sum(tokens))] * (model.depth - 1)


def test_the_source_is_counted_in_the_bytes_of_the_cache():
    model = tiny_edit()
    _, cache = draw_draft(model, edit_recipe(model), 5)
    own = model.cache_bytes(2, SMALL.tokens(0, 5))

    assert cache.nbytes == own + model.cache_bytes(2, 256)
    assert cache.grown(500).nbytes == model.cache_bytes(2, 500) + model.cache_bytes(2, 256)


def test_a_model_of_pictures_refuses_text_alone():
    for model, what in ((tiny_edit(), "edits a picture"), (tiny_enlarge(), "enlarges a picture")):
        recipe = replace(edit_recipe(tiny_edit()), text=(words(0),), guidance=Guidance(3.0))

        with pytest.raises(ValueError, match=what):
            draw_draft(model, recipe, 3)


def test_a_picture_of_another_size_is_refused_for_enlarging():
    recipe = enlarge_recipe()
    wrong = replace(recipe, text=(recipe.text[0]._replace(picture=torch.zeros(2, 40, 32)),))

    with pytest.raises(ValueError, match="pictures of 256 x 256 pixels, got 256 x 320"):
        draw_draft(tiny_enlarge(), wrong, 8)


def test_given_scales_in_one_pass_are_those_scale_by_scale():
    model, recipe = tiny_enlarge(), enlarge_recipe(schedule=make_schedule(1.0, "0.25M"))
    at_once, cache = draw_draft(model, recipe, 8)
    plain = replace(recipe.condition(model), given=())

    by_scale, other = draw_draft(model, recipe, 8, given=at_once.bits[:7], condition=plain)

    assert all(torch.equal(a, b) for a, b in zip(at_once.bits, by_scale.bits, strict=True))
    for layer in range(model.depth):
        pairs = zip(cache.view(layer), other.view(layer), strict=True)
        assert all(torch.allclose(a, b, atol=2e-5) for a, b in pairs)


def test_moss_6_of_an_enlargement_draws_nothing_before_its_pass(monkeypatch):
    model, recipe = tiny_enlarge(), enlarge_recipe(schedule=make_schedule(1.0, "0.25M"))
    drawn = []
    monkeypatch.setattr(type(model), "sample", lambda self, hidden, step: drawn.append(hidden) or 1 / 0)

    draft, _ = draw_draft(model, recipe, 7)

    assert not drawn and draft.scales == 7


@pytest.mark.parametrize("shape", ["varedit-8b", "nsarm-8b"])
def test_bench_checks_the_limits_of_these_families(shape: str):
    found = check_limits(32, torch.device("cpu"), torch.float32, TORCH, shape=shape)

    assert len(found) == 6
    assert [limit for limit in found if not limit.passed] == []
