"""Tiny models of Infinity's fine-tunes with random weights, and recipes for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from builders import (
    TINY,
    randomise,
    released_state,
    released_vae_state,
    tiny_text_dir,
    tiny_transformer,
    tiny_vae,
)
from safetensors.torch import save_file
from torch import Tensor

from comfy_moss.model.backbone import PicturedText
from comfy_moss.model.family import HEADS_KEY
from comfy_moss.model.infinity import InfinityConfig
from comfy_moss.model.nsarm import SIDE, EnlargeBackbone, EnlargeTransformer, MapConfig
from comfy_moss.model.sampling import Guidance, Sampling
from comfy_moss.model.schedule import Schedule, make_schedule
from comfy_moss.model.varedit import EditBackbone
from comfy_moss.pipeline.draft import Recipe

EDIT, ENLARGE = "varedit_512.safetensors", "NSARM.safetensors"
SMALL = make_schedule(1.0, "0.06M")
ENLARGED = make_schedule(1.0, "0.25M")  # seven scales are given, three are drawn
MAPS = MapConfig(2, (3, 4), (8, 8, 8, 12, 16, 12, 16), (2, 1, 1, 1, 1, 1, 1), (4, 2, 4, 3, 8, 3, 4))


def tiny_edit(seed: int = 0, patchify: bool = True, **sizes: int) -> EditBackbone:
    """VAREdit of two narrow blocks; a token covers 2 x 2 cells of the code map unless told otherwise."""
    transformer = tiny_transformer(seed, **sizes)
    channels = transformer.config.bits // (4 if patchify else 1)
    return EditBackbone(transformer, tiny_vae(channels, seed=seed + 1), f"tiny-edit-{seed}")


def tiny_enlarge(seed: int = 0) -> EnlargeBackbone:
    """NSARM of two narrow blocks and seven narrow maps."""
    transformer = EnlargeTransformer(InfinityConfig(**TINY.__dict__), MAPS)
    randomise(transformer, seed)
    transformer.head.weight.data *= 3
    vae = tiny_vae(MAPS.channels, mult=(1, 1, 1, 1), seed=seed + 1)
    return EnlargeBackbone(transformer, vae, f"tiny-enlarge-{seed}")


def words(n: int) -> Tensor:
    """Features of the n-th prompt, each of another length."""
    return torch.randn(4 + n, TINY.text_width, generator=torch.Generator().manual_seed(100 + n))


def picture(n: int, channels: int, side: int) -> Tensor:
    """Codec features of the n-th picture."""
    return torch.randn(channels, side, side, generator=torch.Generator().manual_seed(200 + n))


def edit_recipe(
    model: EditBackbone, batch: int = 1, first: int = 0, schedule: Schedule = SMALL, **changes: object
) -> Recipe:
    """Pictures first .. first + batch - 1, each with a source and a seed of its own."""
    side = model.map_grid(schedule.grids[-1])[0]
    numbers = range(first, first + batch)
    text = tuple(PicturedText(words(n), picture(n, model.channels, side)) for n in numbers)
    return replace(Recipe(text, None, tuple(numbers), schedule), **changes)


def enlarge_recipe(
    batch: int = 1, first: int = 0, schedule: Schedule = ENLARGED, **changes: object
) -> Recipe:
    """The same, of pictures to enlarge."""
    numbers = range(first, first + batch)
    text = tuple(PicturedText(words(n), picture(n, MAPS.channels, SIDE)) for n in numbers)
    recipe = Recipe(text, None, tuple(numbers), schedule, Guidance(1.0), Sampling(0.5))
    return replace(recipe, **changes)


def write_tunes(folder: Path) -> None:
    """Tiny models of both families with their codecs and a text encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_text_dir(folder / "flan-t5-xl", TINY.text_width)
    for name in (EDIT, "plain.safetensors"):
        save_file(released_state(tiny_transformer()), folder / name)
    model = tiny_enlarge()
    heads = {HEADS_KEY: ",".join(map(str, MAPS.heads))}
    save_file(model.transformer.state_dict(), folder / ENLARGE, heads)
    save_file(released_vae_state(tiny_vae()), folder / "plain_vae.safetensors")
    save_file(released_vae_state(model.vae), folder / "small_vae.safetensors")
