"""Facts that the code cites by section stand in docs/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("comfy_moss", "kernels", "benchmarks", "training", "tests")
NUMBER = r"\d+(?:\.\d+)*"
CITED = re.compile(rf"docs/([\w-]+)\.md,\s+sections?\s+({NUMBER}(?:(?:,\s+|\s+and\s+|\s+to\s+){NUMBER})*)")


def citations() -> list[tuple[str, str, str]]:
    """(file, page, section) of every citation in code."""
    found = []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for page, numbers in CITED.findall(path.read_text(encoding="utf-8")):
                found += [(path.relative_to(ROOT).as_posix(), page, n) for n in re.findall(NUMBER, numbers)]
    return found


@pytest.mark.parametrize("page, least", [("infinity", 9), ("hart", 9), ("fine-tunes", 3)])
def test_every_cited_section_exists(page: str, least: int) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    sections = set(re.findall(rf"^##+ ({NUMBER})\.? ", text, re.MULTILINE))
    cited = {(file, number) for file, where, number in citations() if where == page}
    assert len(cited) >= least
    assert [entry for entry in sorted(cited) if entry[1] not in sections] == []


def test_nothing_cites_what_is_not_here() -> None:
    loose = re.compile(r"specification,? section")
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path != Path(__file__)]
    assert [path.name for path in files if loose.search(path.read_text(encoding="utf-8"))] == []
    assert {page for _, page, _ in citations()} <= {path.stem for path in (ROOT / "docs").glob("*.md")}
