"""The KV cache: one memory, several caches on it, and what each may still read."""

from __future__ import annotations

import pytest
import torch
from builders import tiny_backbone
from test_limits import SCHEDULE, make_recipe

from comfy_moss.kernels.reference import dequantized
from comfy_moss.model.backbone import Step
from comfy_moss.model.cache import KVCache, token_bytes
from comfy_moss.model.schedule import Positions
from comfy_moss.pipeline.draft import draw_draft


def make_cache(capacity: int = 10, rows: int = 4) -> KVCache:
    return KVCache([capacity] * 2, rows, 2, 8, torch.float32, "cpu")


def add(cache: KVCache, tokens: int, value: float) -> None:
    """A pass that keeps its tokens."""
    for layer in range(2):
        cache.append(layer, *torch.full((2, cache.rows, 2, tokens, 8), value))


def test_a_layer_says_when_it_is_full():
    cache = make_cache()
    add(cache, 9, 1.0)
    with pytest.raises(ValueError, match="layer 0 holds 10 tokens, 11 were needed"):
        add(cache, 2, 2.0)


def test_what_was_computed_in_place_is_not_copied():
    cache = make_cache()
    k, v = cache.room(0, 3)
    k.fill_(5.0), v.fill_(6.0)
    held = cache.append(0, k, v)
    assert held[0].data_ptr() == k.data_ptr() and cache.lengths == [3, 0]
    assert held[1].unique().tolist() == [6.0]


def test_growing_within_the_memory_copies_nothing_and_beyond_it_copies_all():
    cache = make_cache()
    add(cache, 4, 1.0)
    within, beyond = cache.grown(10), cache.grown(11)
    assert within.layers[0].data_ptr() == cache.layers[0].data_ptr() != beyond.layers[0].data_ptr()
    add(within, 6, 2.0), add(beyond, 7, 2.0)
    assert cache.lengths == [4, 4] and within.lengths == [10, 10] and beyond.lengths == [11, 11]
    assert cache.view(1)[0].unique().tolist() == [1.0] and within.view(1)[0].unique().tolist() == [1.0, 2.0]
    assert not (cache.overwritten or within.overwritten or beyond.overwritten)


def test_bytes_are_those_of_the_memory_whoever_looks():
    cache = make_cache()
    size = 2 * 2 * 4 * 2 * 10 * 8 * 4  # layers, keys and values, rows, heads, tokens, channels, bytes
    assert [part.nbytes for part in (cache, cache.twin(), cache.first_rows(2), cache.grown(10))] == [size] * 4


def test_the_prompts_rows_may_go_on_alone():
    cache = make_cache()
    add(cache, 4, 1.0)
    prompts = cache.first_rows(2)
    add(prompts, 3, 2.0)
    assert (
        prompts.rows == 2
        and prompts.view(0)[0].shape == (2, 2, 7, 8)
        and cache.view(0)[0].shape == (4, 2, 4, 8)
    )
    assert not (prompts.overwritten or cache.overwritten)


def test_a_cache_knows_when_another_has_written_over_its_tokens():
    draft = make_cache()
    add(draft, 4, 1.0)
    one, other = draft.twin(), draft.twin()
    add(one, 3, 2.0)
    later = one.twin()
    add(other, 2, 3.0)
    assert (draft.overwritten, other.overwritten) == (False, False)
    assert one.overwritten and later.overwritten
    assert draft.view(0)[0].unique().tolist() == [1.0]


def test_the_memory_lives_as_long_as_anyone_on_it():
    cache = make_cache()
    assert cache.first_rows(2).owner is cache and cache.twin().owner is cache
    assert cache.detached().owner is None and cache.cleared().lengths == [0, 0]


# --- in 8 bits ----------------------------------------------------------------------------------------------


def random_parts(tokens: int = 7, rows: int = 4) -> torch.Tensor:
    """Keys and values (2, R, H, N, D) whose sizes differ from token to token; one of them zero."""
    parts = torch.randn(2, rows, 2, tokens, 8, generator=torch.Generator().manual_seed(tokens))
    parts *= torch.logspace(-6, 4, tokens)[:, None]
    parts[:, 0, 1, 2] = 0
    return parts


def int8_cache(capacity: int = 10, rows: int = 4, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache([capacity] * 2, rows, 2, 8, dtype, "cpu", int8=True)


def test_a_number_in_8_bits_is_off_by_half_a_127th_of_its_heads_largest():
    cache, parts = int8_cache(), random_parts()
    held = dequantized(cache.append(0, *parts), torch.float32)
    off = (torch.stack(held) - parts).abs().amax(-1)
    assert (off <= parts.abs().amax(-1) / 254 * (1 + 1e-5)).all() and off.max() > 0
    assert not torch.stack(held)[:, 0, 1, 2].any()


@pytest.mark.parametrize(("dtype", "plain"), [(torch.float32, 32), (torch.bfloat16, 16)])
def test_bytes_in_8_bits_are_a_byte_a_number_and_four_a_head(dtype, plain):
    each = 2 * 4 * 2 * 10 * 2  # layers, rows, heads, tokens, keys and values
    assert int8_cache(dtype=dtype).nbytes == each * (8 + 4) == 2 * 4 * 10 * token_bytes(2, 8, dtype, True)
    assert KVCache([10] * 2, 4, 2, 8, dtype, "cpu").nbytes == each * plain == 80 * token_bytes(2, 8, dtype)


def test_copies_in_8_bits_are_the_same_numbers():
    cache, parts = int8_cache(), random_parts()
    for layer in range(2):
        cache.append(layer, *parts)
    grown, picked, prompts = cache.grown(20), cache.of_rows([2, 0]), cache.first_rows(2)
    for layer in range(2):
        views = (some.view(layer) for some in (cache, grown, picked, prompts))
        for part, same, rows, first in zip(*views, strict=True):
            assert torch.equal(same, part) and torch.equal(rows, part[[2, 0]])
            assert torch.equal(first, part[:2])
    assert grown.layers[0].dtype == torch.int8 and grown.layers[0].shape[3] == 20 and picked.rows == 2


def test_in_8_bits_too_a_cache_knows_when_another_has_written_over_its_tokens():
    draft = int8_cache().grown(12)
    one, other = draft.twin(), draft.twin()
    for twin in (one, other):
        for layer in range(2):
            twin.append(layer, *random_parts())
    assert one.overwritten and not other.overwritten and one.lengths == [7, 7]
    with pytest.raises(ValueError, match="layer 0 holds 12 tokens, 14 were needed"):
        one.append(0, *random_parts())


# --- in a forward pass --------------------------------------------------------------------------------------


def test_guidance_after_a_pass_without_it_is_refused():
    model, recipe = tiny_backbone(), make_recipe()
    _, cache = draw_draft(model, recipe, 3)
    condition, positions = recipe.condition(model), Positions.of_scale(SCHEDULE, 3)
    part = cache.first_rows(1)
    assert Step(positions, SCHEDULE, condition.unguided(), cache=part).cache is part
    with pytest.raises(
        ValueError, match="runs 2 rows but the KV cache holds 1: after a pass without guidance"
    ):
        Step(positions, SCHEDULE, condition, cache=part)


def test_overwritten_tokens_are_never_attended_to():
    model, recipe = tiny_backbone(), make_recipe()
    condition = recipe.condition(model)
    empty = model.new_cache(condition, 40)
    first, second = empty.twin(), empty.twin()
    for twin in (first, second):
        step = Step(Positions.of_scale(SCHEDULE, 0), SCHEDULE, condition, cache=twin, store=True)
        model.forward(None, step)
    with pytest.raises(ValueError, match="overwritten by another pass"):
        Step(Positions.of_scale(SCHEDULE, 1), SCHEDULE, condition, cache=first)
    assert Step(Positions.of_scale(SCHEDULE, 1), SCHEDULE, condition, cache=second).cache is second


def test_a_pass_may_keep_chosen_tokens_of_several_scales():
    """The next pass sees them as if they had stood in its own sequence."""
    model, recipe = tiny_backbone(), make_recipe()
    draft, cache = draw_draft(model, recipe, 4)
    condition, total = recipe.condition(model), draft.total
    parts = [Positions.of_cells(SCHEDULE, scale, torch.tensor([[0, 5, 9]])) for scale in (4, 5)]
    inputs = [model.tokens(total, SCHEDULE.grids[scale])[:, [0, 5, 9]] for scale in (4, 5)]
    both = Positions.concat(parts)
    first = torch.tensor([True] * 3 + [False] * 3)
    visible = (first | ~first[:, None])[None]  # the first three see each other, the last three see all

    whole = model.forward(torch.cat(inputs, 1), Step(both, SCHEDULE, condition, cache=cache, visible=visible))
    kept = cache.grown(cache.lengths[0] + 3)
    model.forward(inputs[0], Step(parts[0], SCHEDULE, condition, cache=kept, store=True))
    after = model.forward(inputs[1], Step(parts[1], SCHEDULE, condition, cache=kept))

    assert torch.allclose(after, whole[:, 3:], atol=1e-5)
    assert kept.lengths == [length + 3 for length in cache.lengths]
