"""Which texture an object has."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from comfy_moss.benchmarks import rendering, world
from comfy_moss.benchmarks.detector import detect, shows_texture, strengths, texture_of
from comfy_moss.benchmarks.world import Group, Scene, Thing


def _picture(shape: str, texture: str, count: int, seed: int, side: int = 256) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scene = Scene((Group(count, Thing(shape, list(world.COLORS)[seed % 6], texture)),))
    return rendering.render(scene, rng, side, side)


@pytest.mark.parametrize("texture", world.TEXTURES)
def test_every_texture_is_told_on_every_shape_and_number(texture: str) -> None:
    for seed, (shape, count) in enumerate((s, n) for s in world.SHAPES for n in (1, 4)):
        picture = _picture(shape, texture, count, seed, side=(320, 256, 512)[seed % 3])
        assert [texture_of(picture, found) for found in detect(picture)] == [texture] * count


@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("texture", world.TEXTURES[1:])
def test_a_texture_that_was_blurred_away_is_plain(texture: str, side: int) -> None:
    """As on a grid of 16 x 16 cells, or at 512 pixels one of 32 x 32, which carries the larger size alone."""
    picture, grid = Image.fromarray(_picture("square", texture, 1, 0, side)), (side // 16, side // 16)
    blurred = picture.resize(grid, Image.Resampling.BOX).resize((side, side), Image.Resampling.BILINEAR)
    picture, blurred = np.asarray(picture), np.asarray(blurred)
    (sharp,), (soft,) = detect(picture), detect(blurred)
    assert strengths(picture, sharp)[texture] > 0.9
    assert strengths(blurred, soft)[texture] < 0.3 and texture_of(blurred, soft) == "plain"


def test_half_the_contrast_is_half_the_strength() -> None:
    picture = _picture("circle", "striped", 1, 0).astype(float)
    faint = (0.5 * picture + 0.5 * _picture("circle", "plain", 1, 0)).astype(np.uint8)
    (found,) = detect(faint)
    assert strengths(faint, found)["striped"] == pytest.approx(0.45, abs=0.12)


def test_a_scene_is_shown_with_its_texture_only_where_every_named_one_is_there() -> None:
    def shown(asked: str, drawn: str) -> bool | None:
        picture = rendering.render(world.parse(drawn), np.random.default_rng(0))
        return shows_texture(world.parse(asked), detect(picture), picture)

    assert shown("a red striped star", "a red striped star") is True
    assert (
        shown("a red striped star", "a red star") is shown("a red striped star", "a red dotted star") is False
    )
    assert shown("a red striped star", "a red striped heart") is False
    assert shown("a striped star and a dotted heart", "a striped star and a heart") is False
    assert shown("a striped star and a heart", "a striped star and a heart") is True
    assert shown("a red star", "a red striped star") is None
