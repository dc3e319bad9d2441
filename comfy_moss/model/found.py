"""Plans for a model and a schedule with their evidence, as `calibrate` chose or `evaluate` measured them:
assets/plans.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOUND = Path(__file__).resolve().parent.parent / "assets" / "plans.json"
_KEPT = ("model", "model_id", "scales", "cfg", "command", "date", "hardware", "versions", "setting", "plans")


@dataclass(frozen=True)
class FoundPlan:
    """A plan with its evidence.

    Attributes:
        name: by which its own model knows it; text: the plan, see pipeline/plan.py.
        model, scales: what it was found on: the model's name, and how many scales its schedule had.
        work: multiply-adds as a share of dense's, there.
        score: mean of score and score with textures on the prompts it was measured on, in [0, 1], higher is
            better; low, high: its 95 % interval.
    """

    name: str
    text: str
    model: str
    scales: int
    work: float
    score: float
    low: float
    high: float


def found_plans(path: Path = FOUND) -> tuple[FoundPlan, ...]:
    """All plans that are known so far; empty where none is."""
    return tuple(
        FoundPlan(
            name, one["plan"], made["model"], made["scales"], one["work"],
            *(one["score"][k] for k in ("value", "low", "high")),
        )
        for made in _sets(path) for name, one in made["plans"].items()
    )


def with_found(record: Mapping[str, Any], path: Path = FOUND) -> bytes:
    """The file with the plans of a record (see `_KEPT`), in place of older ones of that model and schedule.
    """
    key = record["model"], record["scales"]
    others = [made for made in _sets(path) if (made["model"], made["scales"]) != key]
    made = {name: record[name] for name in _KEPT}
    return (json.dumps({"found": [*others, made]}, indent=1) + "\n").encode()


def _sets(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["found"] if path.exists() else []
