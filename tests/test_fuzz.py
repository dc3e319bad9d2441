"""Mutated files and workflows from a fixed seed; more of them by `python tests/fuzz.py`."""

from __future__ import annotations

import fuzz
import pytest

MEMORY = 120  # MiB that peak memory may grow after the first tenth: caches of libraries


@pytest.mark.filterwarnings("ignore")
def test_two_thousand_mutated_files_work_or_are_refused_in_a_sentence() -> None:
    found = fuzz.files(2000, full=20)
    assert found.faults == []
    assert found.outcomes["works"] > 200 and sum(found.outcomes.values()) == 2000
    assert found.growth < MEMORY


@pytest.mark.filterwarnings("ignore")
def test_mutated_workflows_run_or_are_refused_in_a_sentence() -> None:
    found = fuzz.workflows(150)
    assert found.faults == [] and found.outcomes["works"] > 5


def test_the_harness_sees_faults() -> None:
    def attempt(chance: object) -> object:
        yield "raise"
        raise KeyError("not ours")

    found = fuzz.run(3, 0, attempt)
    assert len(found.faults) == 3 and "KeyError" in found.faults[0][2]
    assert fuzz.fault(ValueError("ours, but raised in a test")) is not None
    assert not fuzz.is_sentence("One. Two. Three. " * 9) and fuzz.is_sentence(
        "x.png is damaged; download it again"
    )
