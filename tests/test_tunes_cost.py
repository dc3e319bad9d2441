"""Arithmetic of Infinity's fine-tunes: the tables of docs/fine-tunes.md, section 3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comfy_moss.benchmarks.shapes import SHAPES
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.plan import parse_method

GIB, TERA = 2**30, 1e12
PAGE = (Path(__file__).parents[1] / "docs" / "fine-tunes.md").read_text(encoding="utf-8")
EDITS = [
    ("0.25M", "dense", 1024, 2521, 0, 2.69, 111, None, None),
    ("0.25M", "moss2", 1024, 921, 400, 2.08, 71, 1.55, 1.96),
    ("0.25M", "moss3", 1024, 521, 249, 1.65, 54, 2.05, 3.41),
    ("0.25M", "moss4", 1024, 265, 403, 1.38, 51, 2.17, 3.93),
    ("0.25M", "moss5", 1024, 121, 248, 1.22, 42, 2.65, 7.17),
    ("1M", "dense", 4096, 10521, 0, 11.24, 567, None, None),
    ("1M", "moss2", 4096, 4121, 1600, 8.78, 351, 1.62, 2.01),
    ("1M", "moss3", 4096, 2521, 995, 7.07, 263, 2.16, 3.42),
    ("1M", "moss4", 4096, 1497, 1613, 5.97, 248, 2.28, 3.87),
    ("1M", "moss5", 4096, 921, 988, 5.36, 204, 2.79, 6.47),
]
ENLARGEMENTS = [
    ("dense", 10521, 0, 190.6, 100), ("moss2", 4121, 1600, 93.6, 49), ("moss3", 2521, 995, 54.9, 29),
    ("moss4", 1497, 1613, 48.4, 25), ("moss5", 921, 988, 28.9, 15),
]


@pytest.fixture(scope="module")
def edit():
    return SHAPES["varedit-8b"].build(torch.device("meta"), torch.bfloat16, "")


def teraflop(model, schedule, method: str, guided: bool, before: int) -> float:
    passes = parse_method(method).forward_passes(schedule, guided, before, model.depth)
    return 2 * sum(step.macs(model.work, model.depth) for step in passes) / TERA


def block_0_sees_less(model, schedule, method: str, source: int) -> float:
    """What block 0 saves by the shrunk copies, of both rows; `macs` counts all blocks alike."""
    counts = parse_method(method).tokens_per_scale(schedule)
    unseen = sum(n * (source - h * w) for n, (h, w) in zip(counts, schedule.grids, strict=True))
    return 4 * unseen * model.work.attention / model.depth / TERA


def source_alone(model, tokens: int) -> float:
    """Of both rows."""
    return 4 * (tokens * model.work.linear + tokens**2 * model.work.attention) / TERA


@pytest.mark.parametrize("area, method, source, drafted, refined, gib, cost, times, kept", EDITS)
def test_an_edits_tokens_cache_and_operations(
    edit, area, method, source, drafted, refined, gib, cost, times, kept
):
    schedule, plan = make_schedule(1.0, area), parse_method(method)
    before = edit.work.before(schedule)
    cached = schedule.tokens(0, min(plan.on(schedule).draft, len(schedule) - 1))
    dense, found = (
        teraflop(edit, schedule, name, True, before) - block_0_sees_less(edit, schedule, name, source)
        for name in ("dense", method)
    )
    alone = source_alone(edit, source)

    assert before == source
    assert sum(plan.tokens_per_scale(schedule)) == drafted + refined
    assert round(edit.cache_bytes(2, source + cached) / GIB, 2) == gib
    assert round(found) == cost
    if times:
        assert round(dense / found, 2) == times
        assert (dense - alone) / (found - alone) == pytest.approx(kept, abs=0.01)
    told = f"| {512 if area == '0.25M' else 1024} {method.replace('moss', 'MoSs')} | {source} + {drafted}"
    assert f"{told} + {refined} | {gib} | {cost} |" in PAGE


def test_the_source_is_the_floor(edit):
    assert [round(source_alone(edit, tokens)) for tokens in (1024, 4096)] == [31, 137]
    assert [round(edit.cache_bytes(2, tokens) / GIB, 2) for tokens in (1024, 4096)] == [1.09, 4.38]
    assert edit.cache_bytes(2, 1) == 1146880


@pytest.mark.parametrize("method, drafted, refined, cost, share", ENLARGEMENTS)
def test_an_enlargements_tokens_and_operations(edit, method, drafted, refined, cost, share):
    """Its transformer is VAREdit-8B's, its maps are apart."""
    schedule = make_schedule(1.0, "1M")
    dense, found = (teraflop(edit, schedule, name, False, 0) for name in ("dense", method))

    assert sum(parse_method(method).tokens_per_scale(schedule)) == drafted + refined
    assert (round(found, 1), round(100 * found / dense)) == (cost, share)
    told = f"| {method.replace('moss', 'MoSs')} | {drafted} + {refined} | {cost} | {share} % |"
    assert told in PAGE


def test_the_maps_have_the_released_number_of_parameters():
    model = SHAPES["nsarm-8b"].build(torch.device("meta"), torch.bfloat16, "")
    maps = model.transformer.map_transformer.state_dict().values()

    assert len(maps) == 950
    assert sum(tensor.numel() for tensor in maps) == 385_103_600
    assert sum(p.numel() for p in model.transformer.parameters()) == 8_760_895_424
    assert model.work.before(make_schedule()) == 0
