"""Scale schedules and the token arithmetic of the paper."""

from __future__ import annotations

import pytest

from comfy_moss.model.backbone import PAPER_BOUNDS
from comfy_moss.model.schedule import RATIOS, make_schedule, nearest_ratio, parse_aspect
from comfy_moss.pipeline.dispatch import RefinePass


@pytest.mark.parametrize("preset, tokens", [("0.06M", 521), ("0.25M", 2521), ("0.60M", 6425), ("1M", 10521)])
def test_square_token_counts(preset, tokens):
    assert make_schedule(1.0, preset).tokens() == tokens


def test_fifteen_ratios_with_transposes():
    assert len(RATIOS) == 15 and all(len(grids) == 13 for grids in RATIOS.values())
    assert RATIOS[0.666] == tuple((w, h) for h, w in RATIOS[1.5])
    assert max(make_schedule(r).tokens() for r in RATIOS) == 11269


def test_infinity_2b_refine_tokens_at_one_megapixel():
    schedule = make_schedule(1.0, "1M")
    counts = {k: RefinePass.of_last(bounds).counts(schedule) for k, bounds in PAPER_BOUNDS.items()}
    assert counts[2] == (576, 1024)
    assert [sum(counts[k]) for k in (2, 3, 4, 5)] == [1600, 995, 1613, 988]


def test_infinity_2b_cached_tokens_at_one_megapixel():
    schedule = make_schedule(1.0, "1M")
    assert [schedule.tokens(0, 13 - k) for k in (2, 3, 4, 5)] == [4121, 2521, 1497, 921]
    assert schedule.tokens(0, 12) == 6425


def test_rope_grid_is_the_one_megapixel_grid_at_every_preset():
    assert make_schedule(0.75, "0.06M").rope_grid == make_schedule(0.75, "1M").grids[-1] == (54, 72)


@pytest.mark.parametrize(
    "text, key",
    [("1:1", 1.0), ("16:9", 0.571), ("9:16", 1.75), ("3:2", 0.666), ("4:3", 0.75), ("4:5", 1.25), ("1", 1.0)],
)
def test_aspect_as_artists_write_it(text, key):
    assert nearest_ratio(parse_aspect(text)) == key


@pytest.mark.parametrize("text", ["wide", "0:1", "1:0", "9:1", "nan", "1.25"])
def test_impossible_aspects_are_named(text):
    with pytest.raises(ValueError, match=text):
        parse_aspect(text)


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="2M"):
        make_schedule(1.0, "2M")
