"""The embedded model through the whole chain: files, prompt to picture, token and memory arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_transformer
from safetensors import safe_open

import comfy_moss
from comfy_moss.benchmarks.detector import detect, texture_of
from comfy_moss.benchmarks.rendering import render
from comfy_moss.benchmarks.world import TEXTURES, Group, Scene, Thing
from comfy_moss.model.backbone import NANO, PAPER_BOUNDS
from comfy_moss.model.checkpoint import load_infinity
from comfy_moss.model.library import find_model
from comfy_moss.model.lora import merged, read_lora, shapes_of
from comfy_moss.model.quantize import bits_to_codes, quantize_scales, resample
from comfy_moss.model.sampling import Guidance, Sampling
from comfy_moss.model.schedule import make_schedule
from comfy_moss.model.text import TextEncoder
from comfy_moss.pipeline.dispatch import RefinePass
from comfy_moss.pipeline.draft import Recipe, draw_draft
from comfy_moss.pipeline.plan import generate, parse_method
from comfy_moss.request import Request, check

ASSETS = Path(comfy_moss.__file__).parent / "assets" / "nano"
SCHEDULE = make_schedule(1.0, "0.25M")
METHODS = ("dense", "draft", "fastvar", "moss2", "moss3", "moss4", "moss5")


@pytest.fixture(scope="module")
def nano():
    return load_infinity(ASSETS / "transformer.safetensors", ASSETS / "vae.safetensors", ASSETS / "text")


@pytest.fixture(scope="module")
def recipe():
    files = find_model("nano", [])
    prompts = ["a red triangle on a plain white background", "a purple heart on a plain white background"]
    text = TextEncoder.load(ASSETS / "text").encode(prompts)
    return Recipe(tuple(text), None, (0, 1), SCHEDULE, Guidance(files.cfg), Sampling(files.tau))


def single(recipe: Recipe, n: int) -> Recipe:
    return Recipe(
        recipe.text[n : n + 1], None, recipe.seeds[n : n + 1], SCHEDULE, recipe.guidance, recipe.sampling
    )


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    return ((image + 1) / 2 * 255).byte().permute(0, 2, 3, 1)


@pytest.mark.parametrize("levels, scales, row", [(15, 10, 3), (15, 13, 3), (30, 10, 3), (30, 13, 18)])
def test_levels_of_1m_have_rows_of_their_own_in_a_model_with_thirty(levels, scales, row):
    model, scale = tiny_transformer(levels=levels), torch.full((1, 2), 3)
    condition = model.condition([torch.randn(5, 32)], None, guided=True)
    codes = torch.randn(1, 2, 8)

    x = model.embed(codes, scale, condition, scales)

    assert torch.equal(x, (model.word_embed(codes) + model.lvl_embed.weight[row]).expand(2, -1, -1))


def test_the_files_are_small_and_named_as_released():
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 15_000_000
    with safe_open(ASSETS / "transformer.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"block_chunks.1.module.0.sa.scale_mul_1H11", "head_nm.ada_lin.1.weight", "cfg_uncond"} <= names


THINGS = [
    Thing(*kind, texture) for texture in TEXTURES[1:] for kind in (("circle", "yellow"), ("square", "blue"))
]


def encoded(nano, things: list[Thing], side: int) -> tuple[list[torch.Tensor], tuple]:
    """The bits of every scale of pictures of one thing each, and the grids."""
    schedule = SCHEDULE if side == 256 else make_schedule(1.0, "1M")
    scenes = [Scene((Group(1, thing),), None, "white", "plain") for thing in things]
    pictures = np.stack([render(scene, np.random.default_rng(0), side, side) for scene in scenes])
    features = nano.vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1)
    return quantize_scales(features, schedule.grids)[0], schedule.grids


@torch.inference_mode()
@pytest.mark.parametrize(("side", "things"), [(256, THINGS), (512, THINGS[::3])])
def test_the_codec_shows_textures_with_the_last_scales_only(nano, side, things):
    bits, grids = encoded(nano, things, side)

    for scales, wanted in (
        (len(grids), [thing.texture for thing in things]), (len(grids) - 3, ["plain"] * len(things)),
    ):
        codes = sum(resample(bits_to_codes(b, b.shape[1]), grids[-1]) for b in bits[:scales])
        images = to_uint8(nano.vae.decode(codes).clamp(-1, 1)).numpy()
        assert [texture_of(image, detect(image)[0]) for image in images] == wanted


@torch.inference_mode()
def test_both_presets_begin_alike(nano):
    """The scales that both have are learnt together."""
    (small, _), (large, _) = (encoded(nano, THINGS[:1], side) for side in (256, 512))

    alike = [(one == two).float().mean().item() for one, two in zip(small, large, strict=False)]

    assert len(alike) == 10 and min(alike[:6]) > 0.9 and min(alike) > 0.5


@torch.inference_mode()
def test_1m_draws_textures_in_its_last_scales(nano, recipe):
    text = TextEncoder.load(ASSETS / "text").encode(["a dotted blue square on a plain white background"])
    large, totals = replace(single(recipe, 1), text=tuple(text), schedule=make_schedule(1.0, "1M")), []

    draw_draft(nano, large, 13, on_scale=lambda *seen: totals.append(seen[-1]))

    images = [to_uint8(nano.decode(totals[n]).clamp(-1, 1))[0].numpy() for n in (-1, -4)]
    (fine,), (coarse,) = map(detect, images)
    assert [(one.color, one.shape) for one in (fine, coarse)] == [("blue", "square")] * 2
    assert [texture_of(*pair) for pair in zip(images, (fine, coarse), strict=True)] == ["dotted", "plain"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_draws_what_was_asked_for(nano, recipe, method):
    picture = generate(nano, recipe, parse_method(method))

    found = [detect(image.numpy()) for image in to_uint8(picture.image)]

    assert [(f[0].color, f[0].shape) for f in found] == [("red", "triangle"), ("purple", "heart")]


@pytest.mark.parametrize("pixels", ["0.25M", "1M"])
def test_a_name_stands_for_the_bounds_found_on_the_pictures_own_scales(pixels: str) -> None:
    checked = check(Request(prompt="a red heart", method="moss4", pixels=pixels))
    assert checked.method.passes[0].bounds == NANO.searched[len(checked.schedule)][4]


@pytest.mark.parametrize("method", ["dense", "moss2", "moss4"])
def test_the_prompt_of_the_readme_gives_a_red_heart(nano, recipe, method):
    (text,) = TextEncoder.load(ASSETS / "text").encode(["a red heart on a gradient white background"])

    method = parse_method(method, published=NANO.on(SCHEDULE))
    picture = generate(nano, replace(recipe, text=(text,), seeds=(0,)), method)

    (found,) = detect(to_uint8(picture.image)[0].numpy())
    assert (found.color, found.shape) == ("red", "heart")


def test_tokens_and_cache_are_the_arithmetic(nano, recipe):
    config, rows = nano.transformer.config, 2  # one picture, guided
    per_token = 2 * config.depth * rows * config.width * 4  # K and V in float32
    for name in METHODS:
        method = parse_method(name)
        picture = generate(nano, single(recipe, 0), method)
        whole = [h * w for h, w in SCHEDULE.grids]
        if method.label.startswith("moss"):
            k = -method.draft
            refined = RefinePass.of_last(PAPER_BOUNDS[k]).counts(SCHEDULE)
            assert picture.cost.tokens_per_scale == (*whole[:-k], *refined)
            assert picture.cost.kv_bytes == per_token * sum(whole[:-k])
        if name == "dense":
            assert sum(picture.cost.tokens_per_scale) == 2521
            assert picture.cost.kv_bytes == per_token * (2521 - 1024)


def test_the_draft_is_the_same_whatever_k(nano, recipe):
    whole, _ = draw_draft(nano, single(recipe, 0), len(SCHEDULE))
    for k in PAPER_BOUNDS:
        draft = generate(nano, single(recipe, 0), parse_method(f"moss{k}")).passes[0].draft
        assert draft.scales == len(SCHEDULE) - k
        assert all(torch.equal(a, b) for a, b in zip(draft.bits, whole.bits, strict=False))


@pytest.mark.parametrize("method", ["dense", "moss4"])
def test_a_batch_is_its_single_runs(nano, recipe, method):
    together = generate(nano, recipe, parse_method(method))
    for n in range(2):
        alone = generate(nano, single(recipe, n), parse_method(method))
        assert (to_uint8(together.image)[n].int() - to_uint8(alone.image)[0].int()).abs().max() <= 1


def test_bfloat16_draws_nearly_the_same_bits_from_the_same_bits_before(nano, recipe):
    half = load_infinity(ASSETS / "transformer.safetensors", ASSETS / "vae.safetensors", dtype=torch.bfloat16)
    reference, _ = draw_draft(nano, recipe, len(SCHEDULE))
    apart = []
    for n, bits in enumerate(reference.bits):
        drawn, _ = draw_draft(half, recipe, n + 1, given=reference.bits[:n])
        apart.append((drawn.bits[n] != bits).float().mean().item())
    assert 0 < max(apart) <= 0.01


def test_the_included_lora_makes_it_night_and_draws_the_same_things(recipe):
    path = ASSETS.parent / "loras" / "nano-night.safetensors"
    assert path.stat().st_size <= 200_000
    corners, things = [], []
    for strength in (0.0, 1.0):
        model = load_infinity(ASSETS / "transformer.safetensors", ASSETS / "vae.safetensors")
        model = merged(model, [(read_lora(path, shapes_of(model)), strength)])
        images = to_uint8(generate(model, recipe, parse_method("dense")).image)
        corners.append(images[:, :40, :40].float().mean((1, 2, 3)))
        things.append([[(found.shape, found.color) for found in detect(image.numpy())] for image in images])
    assert corners[0].min() > 200 and corners[1].max() < 80
    assert things[0] == things[1] == [[("triangle", "red")], [("heart", "purple")]]
