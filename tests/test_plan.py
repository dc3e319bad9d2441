"""Pictures from recipes, by every method, and what they are said to cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from comfy_moss.model.backbone import PAPER, PAPER_BOUNDS
from comfy_moss.model.infinity import InfinityBackbone
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.plan import STAGES, Method, Plan, generate, parse_method

SCHEDULE = make_schedule(1.0, "0.06M")  # 1 2 4 6 8 12 16
TOKENS = (1, 4, 16, 36, 64, 144, 256)


def _text(seed: int) -> Tensor:
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def recipe() -> Recipe:
    return Recipe((_text(0),), None, (7,), SCHEDULE)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_the_names_moss2_to_moss5_carry_the_papers_bounds(k: int) -> None:
    assert parse_method(f"moss{k}") == Plan.moss(PAPER_BOUNDS[k])


def test_a_model_with_bounds_of_its_own_gives_them_to_the_names() -> None:
    own = replace(PAPER, calibrated={3: (80.0, 10.0, 1.0)})
    assert parse_method("moss3", published=own).passes[0].bounds == (80, 10, 1)
    assert parse_method("moss2", published=own).passes[0].bounds == PAPER_BOUNDS[2]


@pytest.mark.parametrize(("pixels", "bounds"), [("0.06M", 90), ("0.25M", 90), ("1M", 20)])
def test_found_bounds_are_for_pictures_of_nearly_as_many_scales(pixels: str, bounds: float) -> None:
    known = replace(PAPER, searched={10: {2: (90.0, 1.0)}, 13: {2: (20.0, 1.0)}})
    own = known.on(make_schedule(1.0, pixels))
    assert parse_method("moss2", published=own).passes[0].bounds == (bounds, 1)
    assert parse_method("moss2-paper", published=own).passes[0].bounds == PAPER_BOUNDS[2]
    assert PAPER.on(make_schedule(1.0, pixels)) is PAPER
    with pytest.raises(AssertionError, match="`on` says which is drawn"):
        parse_method("moss2", published=known)


def test_moss_takes_any_number_of_bounds() -> None:
    method = parse_method("moss", [60.0])
    assert (method.draft, method.label) == (-1, "moss1")


def test_a_draft_skips_what_moss4_refines_unless_told_otherwise() -> None:
    assert parse_method("draft").label == "draft-4"
    assert parse_method("draft", skip=0).label == "dense"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("best", {}, "method 'best' is unknown"),
        ("moss6", {}, "method 'moss6' is unknown"),
        ("moss", {}, "needs bounds"),
        ("moss", {"bounds": []}, "needs bounds"),
        ("moss3", {"bounds": [50, 20]}, "moss3 takes 3 bounds, got 2"),
        ("moss2", {"bounds": [20, 50]}, "bounds must fall"),
        ("moss2", {"bounds": [120, 50]}, "between 0 and 100"),
        ("dense", {"bounds": [50]}, "bounds belong to the moss methods"),
        ("moss4", {"skip": 2}, "skip belongs to the method draft"),
        ("draft", {"skip": -1}, "0 or more"),
    ],
)
def test_methods_that_make_no_sense_are_refused(text: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text, **options)


@pytest.mark.parametrize("strength", [1.1, -0.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        Plan.moss((50.0, 20.0), strength=strength)


@pytest.mark.parametrize("window", [4, 1, -3])
def test_a_window_out_of_range_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match="window"):
        Plan(-2, window=window)


@pytest.mark.parametrize("method", [parse_method("draft", skip=7), Plan.moss((50.0,) * 7)])
def test_a_method_must_leave_a_scale_to_draw(
    backbone: InfinityBackbone, recipe: Recipe, method: Method
) -> None:
    with pytest.raises(ValueError, match="this picture has 7 scales"):
        generate(backbone, recipe, method)


def test_skipping_nothing_is_dense(backbone: InfinityBackbone, recipe: Recipe) -> None:
    dense = generate(backbone, recipe, parse_method("dense"))
    assert torch.equal(generate(backbone, recipe, parse_method("draft", skip=0)).image, dense.image)
    assert dense.image.shape == (1, 3, 16 * backbone.stride, 16 * backbone.stride)
    assert dense.image.abs().max() <= 1


def test_one_refine_scale_taken_whole_is_dense(backbone: InfinityBackbone, recipe: Recipe) -> None:
    dense, moss = (
        generate(backbone, recipe, m) for m in (parse_method("dense"), parse_method("moss", [100.0]))
    )
    assert torch.allclose(moss.total, dense.total, atol=1e-6)
    assert torch.allclose(moss.image, dense.image, atol=1e-5)


def test_strength_zero_is_the_draft(backbone: InfinityBackbone, recipe: Recipe) -> None:
    weak = generate(backbone, recipe, Plan.moss(PAPER_BOUNDS[3], strength=0.0))
    assert torch.equal(weak.image, generate(backbone, recipe, parse_method("draft", skip=3)).image)
    assert not torch.equal(weak.image, generate(backbone, recipe, parse_method("moss3")).image)


def test_tokens_are_counted_per_scale(backbone: InfinityBackbone, recipe: Recipe) -> None:
    counted = {
        name: generate(backbone, recipe, parse_method(name))
        for name in ("dense", "draft", "moss2", "fastvar")
    }
    assert counted["dense"].cost.tokens_per_scale == TOKENS
    assert counted["draft"].cost.tokens_per_scale == (1, 4, 16, 0, 0, 0, 0)
    assert counted["moss2"].cost.tokens_per_scale == (1, 4, 16, 36, 64, 36, 64)  # a quarter of 144 and of 256
    assert counted["fastvar"].cost.tokens_per_scale == (1, 4, 16, 22, 32, 0, 0)
    assert [p.cost.refine_tokens for p in counted.values()] == [0, 0, 100, 0]


@pytest.mark.parametrize(("name", "cached"), [("dense", 265), ("draft", 21), ("moss2", 121), ("moss5", 5)])
def test_kv_bytes_are_those_of_all_scales_that_later_ones_read(
    backbone: InfinityBackbone, recipe: Recipe, name: str, cached: int
) -> None:
    # keys and values, guided rows, fp32
    per_token = backbone.depth * 2 * 2 * backbone.transformer.config.width * 4
    assert generate(backbone, recipe, parse_method(name)).cost.kv_bytes == cached * per_token


def test_without_guidance_the_cache_is_half_as_large(backbone: InfinityBackbone, recipe: Recipe) -> None:
    guided = generate(backbone, recipe, parse_method("moss2")).cost.kv_bytes
    plain = replace(recipe, guidance=replace(recipe.guidance, cfg=1.0))
    assert 2 * generate(backbone, plain, parse_method("moss2")).cost.kv_bytes == guided


def test_every_stage_is_timed_and_only_where_it_runs(backbone: InfinityBackbone, recipe: Recipe) -> None:
    moss, dense = (generate(backbone, recipe, parse_method(name)).cost.seconds for name in ("moss2", "dense"))
    assert tuple(moss) == tuple(dense) == STAGES
    assert all(seconds > 0 for seconds in moss.values())
    assert {stage for stage, seconds in dense.items() if seconds} == {"draft", "decode"}


def test_progress_is_told_after_every_scale(backbone: InfinityBackbone, recipe: Recipe) -> None:
    seen = []
    picture = generate(backbone, recipe, parse_method("moss2"), lambda *news: seen.append(news))
    assert [(done, scales) for done, scales, _ in seen] == [(n, 7) for n in (1, 2, 3, 4, 5, 7)]
    assert torch.equal(seen[-1][2], picture.total)


def test_an_error_in_the_callback_ends_the_drawing(backbone: InfinityBackbone, recipe: Recipe) -> None:
    def cancel(done: int, scales: int, total: Tensor) -> None:
        if done == 2:
            raise InterruptedError("cancelled")

    with pytest.raises(InterruptedError, match="cancelled"):
        generate(backbone, recipe, parse_method("moss2"), cancel)


@pytest.mark.parametrize("name", ["dense", "draft", "moss4", "fastvar"])
def test_a_batch_of_four_equals_four_single_runs(backbone: InfinityBackbone, name: str) -> None:
    seeds, texts = (3, 4, 5, 6), tuple(_text(n) for n in range(4))
    method = parse_method(name)
    together = generate(backbone, Recipe(texts, None, seeds, SCHEDULE), method)
    for n, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        alone = generate(backbone, Recipe((text,), None, (seed,), SCHEDULE), method)
        assert torch.allclose(together.image[n], alone.image[0], atol=1e-4)
        assert together.cost.tokens_per_scale == alone.cost.tokens_per_scale


def test_other_methods_keep_nothing_of_moss(backbone: InfinityBackbone, recipe: Recipe) -> None:
    dense, moss = (generate(backbone, recipe, parse_method(name)) for name in ("dense", "moss2"))
    (maps,) = moss.passes
    assert dense.passes == ()
    assert maps.draft.scales == 5 and maps.frequency.shape == (1, 16, 16) and maps.dispatch.scales == (5, 6)
