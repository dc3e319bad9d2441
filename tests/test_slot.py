"""The slot: one KV cache, for the draft in use, and no longer than it lives."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from comfy_moss.model.cache import KVCache
from comfy_moss.model.infinity_backbone import InfinityBackbone
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.draft import Draft, Recipe, draw_draft
from comfy_moss.pipeline.slot import CacheSlot


def _draw(backbone: InfinityBackbone, seed: int = 0) -> tuple[Draft, KVCache]:
    text = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    return draw_draft(backbone, Recipe((text,), None, (seed,), make_schedule(1.0, "0.06M")), 4)


def _equal(a: KVCache, b: KVCache) -> bool:
    return a.lengths == b.lengths and all(
        torch.equal(x, y) for n in range(len(a.layers)) for x, y in zip(a.view(n), b.view(n), strict=True)
    )


@pytest.fixture(autouse=True)
def without_collector() -> None:
    """What a slot frees must go at once, not when the collector comes by."""
    gc.disable()
    yield
    gc.enable()


def test_the_cache_comes_back_for_its_draft(backbone: InfinityBackbone) -> None:
    draft, cache = _draw(backbone)
    slot = CacheSlot()
    slot.keep(draft, cache)
    assert slot.of(backbone, draft) is cache
    assert slot.nbytes == cache.nbytes > 0


@pytest.mark.parametrize("before", ["empty", "another draft's"])
def test_a_cache_that_is_not_there_is_rebuilt_with_the_same_numbers_and_kept(backbone: InfinityBackbone, before: str) -> None:
    (draft, cache), other = _draw(backbone), _draw(backbone, seed=1)
    slot = CacheSlot()
    if before != "empty":
        slot.keep(*other)
    rebuilt = slot.of(backbone, draft)
    assert rebuilt is not cache and _equal(rebuilt, cache) and not _equal(rebuilt, other[1])
    assert slot.of(backbone, draft) is rebuilt


def test_an_equal_draft_is_another_draft(backbone: InfinityBackbone) -> None:
    """Only identity says whose cache it is: drafts that look alike may belong to different weights."""
    (draft, cache), (twin, _) = _draw(backbone), _draw(backbone)
    slot = CacheSlot()
    slot.keep(draft, cache)
    assert slot.of(backbone, twin) is not cache


def test_a_new_cache_frees_the_old_one_and_two_never_stand_side_by_side(
    backbone: InfinityBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (draft, cache), (other, _) = _draw(backbone), _draw(backbone, seed=1)
    slot = CacheSlot()
    slot.keep(draft, cache)
    storage = weakref.ref(cache.layers[0])
    del cache
    freed = []
    rebuild = draw_draft
    monkeypatch.setattr(
        "comfy_moss.pipeline.draft.draw_draft", lambda *a, **k: (freed.append(storage() is None), rebuild(*a, **k))[1]
    )
    slot.of(backbone, other)
    assert freed == [True]


def test_the_cache_goes_with_its_draft(backbone: InfinityBackbone) -> None:
    draft, cache = _draw(backbone)
    slot = CacheSlot()
    slot.keep(draft, cache)
    storage = weakref.ref(cache.layers[0])
    del cache
    assert storage() is not None
    del draft
    assert storage() is None and slot.nbytes == 0


def test_the_death_of_an_earlier_draft_leaves_the_cache_of_the_present_one(backbone: InfinityBackbone) -> None:
    (draft, cache), (other, others) = _draw(backbone), _draw(backbone, seed=1)
    slot = CacheSlot()
    slot.keep(draft, cache)
    slot.keep(other, others)
    del draft
    assert slot.of(backbone, other) is others


def test_clear_frees_the_cache_and_the_draft_may_have_it_rebuilt(backbone: InfinityBackbone) -> None:
    draft, cache = _draw(backbone)
    slot = CacheSlot()
    slot.keep(draft, cache)
    storage = weakref.ref(cache.layers[0])
    del cache
    slot.clear()
    assert storage() is None and slot.nbytes == 0
    assert slot.of(backbone, draft).nbytes > 0
