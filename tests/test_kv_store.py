"""The store: one KV cache, for the draft in use and the passes over it, and no longer than that draft lives.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from comfy_moss.model.cache import KVCache
from comfy_moss.model.infinity import InfinityBackbone
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.dispatch import RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import Draft, Recipe, Run, draft_of
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.refine import KVStore, composite, draw_pass

SCHEDULE = make_schedule(1.0, "0.06M")
COARSE, FINE = RefinePass((-3,), (60.0,)), RefinePass((-1,), (30.0,), guidance=1.0)


def _draw(backbone: InfinityBackbone, seed: int = 0) -> tuple[Draft, Run]:
    text = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    run = Run.begin(backbone, Recipe((text,), None, (seed,), SCHEDULE), SCHEDULE.tokens(0, 4))
    return draft_of(run, 4), run


def _refined(store: KVStore, backbone: InfinityBackbone, draft: Draft, step: RefinePass) -> Draft:
    """One more pass over a draft, drawn and kept as the nodes do it."""
    dispatch = dispatch_tokens(frequency_map(draft.total), SCHEDULE, step)
    store.run_of(backbone, draft)
    run = store.with_room(draft, sum(dispatch.counts))
    residual, run = draw_pass(run, draft, dispatch, step, store=True)
    store.keep_pass(draft, residual, run)
    return composite(backbone, draft, residual)


def _equal(a: KVCache, b: KVCache) -> bool:
    return a.lengths == b.lengths and all(
        torch.equal(x, y) for n in range(len(a.layers)) for x, y in zip(a.view(n), b.view(n), strict=True)
    )


@pytest.fixture(autouse=True)
def without_collector() -> None:
    """What a store frees must go at once, not when the collector comes by."""
    gc.disable()
    yield
    gc.enable()


def test_the_cache_comes_back_for_its_draft(backbone: InfinityBackbone) -> None:
    draft, run = _draw(backbone)
    store = KVStore()
    store.keep(draft, run)
    assert store.run_of(backbone, draft).cache is run.cache and store.holds(draft)
    assert store.nbytes == run.cache.nbytes > 0 and store.missing(draft) == 0


@pytest.mark.parametrize("before", ["empty", "another draft's"])
def test_a_cache_that_is_not_there_is_rebuilt_with_the_same_numbers_and_kept(
    backbone: InfinityBackbone, before: str
) -> None:
    (draft, run), other = _draw(backbone), _draw(backbone, seed=1)
    store = KVStore()
    if before != "empty":
        store.keep(*other)
    assert store.missing(draft) == SCHEDULE.tokens(0, 4)
    rebuilt = store.run_of(backbone, draft).cache
    assert rebuilt is not run.cache and _equal(rebuilt, run.cache) and not _equal(rebuilt, other[1].cache)
    assert store.run_of(backbone, draft).cache is rebuilt


def test_an_equal_draft_is_another_draft(backbone: InfinityBackbone) -> None:
    """Only identity says whose cache it is: drafts that look alike may belong to different weights."""
    (draft, run), (twin, _) = _draw(backbone), _draw(backbone)
    store = KVStore()
    store.keep(draft, run)
    assert store.run_of(backbone, twin).cache is not run.cache and not store.holds(draft)


def test_a_new_cache_frees_the_old_one_and_two_never_stand_side_by_side(
    backbone: InfinityBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (draft, run), (other, _) = _draw(backbone), _draw(backbone, seed=1)
    store = KVStore()
    store.keep(draft, run)
    storage = weakref.ref(run.cache.layers[0])
    del run
    freed, begin = [], Run.begin
    monkeypatch.setattr(Run, "begin", lambda *a, **k: (freed.append(storage() is None), begin(*a, **k))[1])
    store.run_of(backbone, other)
    assert freed == [True]


def test_the_cache_goes_with_its_draft(backbone: InfinityBackbone) -> None:
    draft, run = _draw(backbone)
    store = KVStore()
    store.keep(draft, run)
    storage = weakref.ref(run.cache.layers[0])
    del run
    assert storage() is not None
    del draft
    assert storage() is None and store.nbytes == 0


def test_the_death_of_an_earlier_draft_leaves_the_cache_of_the_present_one(
    backbone: InfinityBackbone,
) -> None:
    (draft, run), (other, others) = _draw(backbone), _draw(backbone, seed=1)
    store = KVStore()
    store.keep(draft, run)
    store.keep(other, others)
    del draft
    assert store.run_of(backbone, other).cache is others.cache


def test_clear_frees_the_cache_and_the_draft_may_have_it_rebuilt(backbone: InfinityBackbone) -> None:
    draft, run = _draw(backbone)
    store = KVStore()
    store.keep(draft, run)
    storage = weakref.ref(run.cache.layers[0])
    del run
    store.clear()
    assert storage() is None and store.nbytes == 0
    assert store.run_of(backbone, draft).cache.nbytes > 0


def test_a_rebuild_counts_its_scales_and_can_be_cancelled_between_any_two(backbone: InfinityBackbone) -> None:
    draft, _ = _draw(backbone)
    store, seen = KVStore(), []
    store.run_of(backbone, draft, lambda done, scales, total: seen.append((done, scales)))
    assert seen == [(n, len(SCHEDULE)) for n in (1, 2, 3, 4)]
    store.run_of(backbone, draft, lambda *_: pytest.fail("nothing to rebuild"))
    store.clear()

    def cancel(done: int, scales: int, total: torch.Tensor) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run_of(backbone, draft, cancel)
    assert not store.holds(draft) and store.nbytes == 0


# --- passes -------------------------------------------------------------------------------------------------


def test_a_kept_pass_comes_back_and_is_what_a_rebuild_gives(backbone: InfinityBackbone) -> None:
    draft, run = _draw(backbone)
    store, fresh = KVStore(), KVStore()
    store.keep(draft, run)
    after = _refined(store, backbone, draft, COARSE)

    assert store.missing(after) == 0 and store.holds(after)
    assert _equal(store.run_of(backbone, after).cache, fresh.run_of(backbone, after).cache)
    assert fresh.missing(after) == 0 and _equal(store.run_of(backbone, draft).cache, run.cache)


def test_a_pass_laid_on_with_another_strength_needs_no_rebuild_and_another_pass_does(
    backbone: InfinityBackbone,
) -> None:
    draft, run = _draw(backbone)
    store = KVStore()
    store.keep(draft, run)
    after = _refined(store, backbone, draft, COARSE)
    residual = after.passes[0]
    weaker = composite(backbone, draft, replace(residual, made_by=replace(COARSE, strength=0.5)))
    other = _refined(KVStore(), backbone, draft, RefinePass((-3,), (20.0,)))

    assert store.missing(weaker) == 0
    assert store.missing(other) == sum(other.passes[0].dispatch.counts)
    assert _equal(store.run_of(backbone, other).cache, KVStore().run_of(backbone, other).cache)
    assert store.missing(after) > 0  # one sequence of passes at a time


def test_a_pass_without_guidance_keeps_the_prompts_rows_only(backbone: InfinityBackbone) -> None:
    draft, run = _draw(backbone)
    store = KVStore()
    store.keep(draft, run)
    after = _refined(store, backbone, draft, replace(COARSE, guidance=1.0))
    kept = store.run_of(backbone, after)

    assert not kept.condition.guided and kept.cache.layers[0].shape[1] == 1
    assert store.run_of(backbone, draft).condition.guided
    dispatch = dispatch_tokens(frequency_map(after.total), SCHEDULE, replace(FINE, guidance=3.0))
    with pytest.raises(ValueError, match="cannot follow a draft or a pass without guidance"):
        draw_pass(kept, after, dispatch, replace(FINE, guidance=3.0), store=False)
