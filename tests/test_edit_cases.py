"""Cases of edits and their judge: perfect edits pass, sources do not, and the page tells what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from comfy_moss.benchmarks import edits
from comfy_moss.benchmarks.edit_cases import KINDS, Verdict, cases, judge

CASES = cases(6, 5)


def test_perfect_edits_pass_and_sources_keep_all_but_the_change() -> None:
    assert [case.kind for case in CASES] == list(KINDS) * 6
    for case in CASES:
        before, after = case.pictures()
        assert judge(case, after) == Verdict(True, True), case.prompts
        assert not judge(case, before).fulfilled, case.prompts


def test_a_case_changes_one_thing_and_the_true_mask_holds_it() -> None:
    for case in CASES:
        before, after = case.pictures()
        mask = case.may_change()
        assert case.prompts[0] != case.prompts[1] and 0 < mask.mean() < 1
        assert np.abs(before.astype(int) - after)[~mask].max() <= 12
        assert (case.kind == "background") == bool(mask[0, 0])


def test_a_moved_object_is_not_preserved() -> None:
    for case in (case for case in CASES if case.kind == "colour"):
        moved = np.roll(case.pictures()[1], 40, axis=1)
        assert judge(case, moved).fulfilled and not judge(case, moved).kept


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two whole turns of the kinds and a part of one."""
    for n in range(2 * len(KINDS) + 3):
        row = {"kept": True, "error": 65.025, "tokens": 10}
        rows = {name: row | {"fulfilled": name == "gate"} for name in edits.WAYS}
        (tmp_path / f"{n:03d}.json").write_text(json.dumps(rows))
    return tmp_path


def test_the_page_counts_whole_turns_and_pairs_differences(folder: Path) -> None:
    result = edits.combine(folder, None)
    found = edits.Found(result)
    assert found.count == 10 and found.column("gate", "both").value == 1
    assert found.minus("gate", "gate-dense", "both").value == 1
    assert found.column("codec", "psnr").value == pytest.approx(30.0)
    text = edits.page(result)
    assert text.startswith("# Edits") and "10 of the suite's 120 cases" in text and "{" not in text
    assert "1.000 [1.000, 1.000]" in text and "Not measured yet" in text
