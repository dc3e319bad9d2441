"""Parity of Infinity's fine-tunes with the original code, on the small reference cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from comfy_moss.benchmarks.verify import verify
from comfy_moss.model import varedit
from comfy_moss.model.infinity import InfinityBackbone
from comfy_moss.model.nsarm import EnlargeBackbone

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("MOSS_GOLDEN", HERE.parents[1] / "shared" / "golden")).parent
COMPLETE = [SHARED / name for name in ("golden_varedit", "golden_nsarm")]


def failed(folder: Path) -> set[str]:
    return {check.quantity for check in verify(folder) if not check.passed}


def test_the_bundled_cases_of_varedit_pass():
    checks = list(verify(HERE / "golden_varedit"))

    assert {check.case for check in checks} == {"rope_edit", "case_W_512_sample_negative"}
    compared = {check.quantity for check in checks}
    assert compared >= {"src K, V", "wrong numbers of keys", "wrong bits", "logits"}
    assert [check for check in checks if not check.passed] == []


def test_the_bundled_cases_of_nsarm_pass():
    checks = list(verify(HERE / "golden_nsarm"))

    assert {check.case for check in checks} == {"case_A_sample", "colour_1024"}
    compared = {check.quantity for check in checks}
    assert compared >= {"map", "wrong prefix bits", "wrong bits", "picture, 8 bit"}
    assert [check for check in checks if not check.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", COMPLETE, ids=lambda folder: folder.name)
def test_every_reference_case_passes(folder: Path):
    if not folder.is_dir():
        pytest.skip("NOT VERIFIED: the complete reference numbers are not here; name them in MOSS_GOLDEN")
    assert failed(folder) == set()


def test_natural_positions_at_512_fail(monkeypatch):
    monkeypatch.setattr(varedit.EditBackbone, "rotation", InfinityBackbone.rotation)

    assert "logits" in failed(HERE / "golden_varedit")


def test_the_whole_source_in_block_0_fails(monkeypatch):
    monkeypatch.setattr(varedit, "shrunk", lambda source, schedule, scale, dtype: source)

    assert {"logits", "wrong numbers of keys"} <= failed(HERE / "golden_varedit")


def test_shrinking_bilinearly_fails(monkeypatch):
    monkeypatch.setattr(EnlargeBackbone, "tokens", InfinityBackbone.tokens)

    assert {"logits", "next_in"} <= failed(HERE / "golden_nsarm")


def test_transposing_a_map_fails(monkeypatch):
    def transposed(out: torch.Tensor) -> torch.Tensor:
        side = int(out.shape[1] ** 0.5)
        return (out.transpose(1, 2).reshape(len(out), -1, side, side) > 0).to(torch.uint8)

    monkeypatch.setattr("comfy_moss.model.nsarm.map_bits", transposed)

    assert "wrong prefix bits" in failed(HERE / "golden_nsarm")
