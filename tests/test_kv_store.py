"""The store: one KV cache, for the draft in use, and no longer than it lives."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from comfy_moss.model.backbone import Condition
from comfy_moss.model.cache import KVCache
from comfy_moss.model.infinity_backbone import InfinityBackbone
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.draft import Draft, Recipe, Run, draw_draft
from comfy_moss.pipeline.kv_store import KVStore, Stored


def _draw(backbone: InfinityBackbone, seed: int = 0) -> tuple[Draft, KVCache, Condition]:
    text = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    recipe = Recipe((text,), None, (seed,), make_schedule(1.0, "0.06M"))
    condition = recipe.condition(backbone)
    return *draw_draft(backbone, recipe, 4, condition=condition), condition


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
    draft, cache, condition = _draw(backbone)
    store = KVStore()
    store.keep(draft, cache, condition)
    assert store.of(backbone, draft) == Stored(cache, condition) and store.holds(draft)
    assert store.nbytes == cache.nbytes > 0


@pytest.mark.parametrize("before", ["empty", "another draft's"])
def test_a_cache_that_is_not_there_is_rebuilt_with_the_same_numbers_and_kept(backbone: InfinityBackbone, before: str) -> None:
    (draft, cache, _condition), other = _draw(backbone), _draw(backbone, seed=1)
    store = KVStore()
    if before != "empty":
        store.keep(*other)
    rebuilt = store.of(backbone, draft).cache
    assert rebuilt is not cache and _equal(rebuilt, cache) and not _equal(rebuilt, other[1])
    assert store.of(backbone, draft).cache is rebuilt


def test_an_equal_draft_is_another_draft(backbone: InfinityBackbone) -> None:
    """Only identity says whose cache it is: drafts that look alike may belong to different weights."""
    (draft, cache, condition), (twin, *_) = _draw(backbone), _draw(backbone)
    store = KVStore()
    store.keep(draft, cache, condition)
    assert store.of(backbone, twin).cache is not cache and not store.holds(draft)


def test_a_new_cache_frees_the_old_one_and_two_never_stand_side_by_side(
    backbone: InfinityBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (draft, cache, condition), (other, *_) = _draw(backbone), _draw(backbone, seed=1)
    store = KVStore()
    store.keep(draft, cache, condition)
    storage = weakref.ref(cache.layers[0])
    del cache
    freed = []
    begin = Run.begin
    monkeypatch.setattr(
        Run, "begin", lambda *a, **k: (freed.append(storage() is None), begin(*a, **k))[1]
    )
    store.of(backbone, other)
    assert freed == [True]


def test_the_cache_goes_with_its_draft(backbone: InfinityBackbone) -> None:
    draft, cache, condition = _draw(backbone)
    store = KVStore()
    store.keep(draft, cache, condition)
    storage = weakref.ref(cache.layers[0])
    del cache
    assert storage() is not None
    del draft
    assert storage() is None and store.nbytes == 0


def test_the_death_of_an_earlier_draft_leaves_the_cache_of_the_present_one(backbone: InfinityBackbone) -> None:
    (draft, cache, condition), (other, *others) = _draw(backbone), _draw(backbone, seed=1)
    store = KVStore()
    store.keep(draft, cache, condition)
    store.keep(other, *others)
    del draft
    assert store.of(backbone, other).cache is others[0]


def test_clear_frees_the_cache_and_the_draft_may_have_it_rebuilt(backbone: InfinityBackbone) -> None:
    draft, cache, condition = _draw(backbone)
    store = KVStore()
    store.keep(draft, cache, condition)
    storage = weakref.ref(cache.layers[0])
    del cache
    store.clear()
    assert storage() is None and store.nbytes == 0
    assert store.of(backbone, draft).cache.nbytes > 0


def test_a_rebuild_counts_its_scales_and_can_be_cancelled_between_any_two(backbone: InfinityBackbone) -> None:
    draft, *_ = _draw(backbone)
    store, seen = KVStore(), []
    store.of(backbone, draft, lambda done, scales, total: seen.append((done, scales)))
    assert seen == [(n, len(draft.recipe.schedule)) for n in (1, 2, 3, 4)]
    store.of(backbone, draft, lambda *_: pytest.fail("nothing to rebuild"))
    store.clear()

    def cancel(done: int, scales: int, total: torch.Tensor) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.of(backbone, draft, cancel)
    assert not store.holds(draft) and store.nbytes == 0
