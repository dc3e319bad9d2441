"""Found bounds on disk, and their part of docs/quality.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from comfy_moss.images import write_files

from ...bench import RESULTS
from ...bench.machine import hardware, versions
from ...bench.store import read_result
from .order import Order, Result
from .table import facts

FORMAT = 1  # of the file; raised when a key changes its meaning
_OPTIONS = ("k", "metric", "tokens", "tolerance", "step", "order", "prompts", "compare", "seed", "model")
_TEXT = """## Bounds, found by `calibrate`

Searched from the top down, one bound after the other, on prompts that no table above uses, under the number of refine tokens that
the paper's bounds spend. All rows of a k are compared at that number; gains are paired by picture, and those of the found bounds
are on the very prompts of the search, which flatters them: whether they hold, the tables above tell."""


def record(order: Order, result: Result) -> dict[str, Any]:
    """Everything about a search, ready for JSON."""
    given = {name: order.asked[name] for name in _OPTIONS}
    return {
        "format": FORMAT,
        "command": " ".join(["python -m comfy_moss calibrate", *(f"--{n} {v}" for n, v in given.items() if v is not None)]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(order.job.device), "versions": versions(),
        "model": Path(order.job.files.name).name, "model_id": result.model_id,
        "plot": order.plot and order.plot.name,
        **facts(order, result),
    }  # fmt: skip


def save(found: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Store a search, in place of an older one of the same model and k."""
    path = folder / f"calibration-{found['model']}-{found['setting']['k']}.json"
    write_files({path: (json.dumps(found, indent=1) + "\n").encode()})
    return path


def stored(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All stored searches, by name.

    Raises:
        ValueError: a file is no search of this version.
    """
    return [read_result(path, FORMAT, "calibrate") for path in sorted(folder.glob("calibration-*.json"))]


def section(found: Sequence[dict[str, Any]]) -> str:
    """The part of the page; "" without searches."""
    if not found:
        return ""
    head = ["model", "k", "bounds", "percent, coarsest first", "refine tokens", "metric", "value", "minus the first row's"]
    lines = [head, ["---", "---:", "---", "---", *["---:"] * 4], *(line for one in found for line in _lines(one))]
    commands = "\n".join(f"    {one['command']}" for one in found)
    conditions = [
        f"- moss{one['setting']['k']}: {one['date'][:10]}; {one['hardware']['device']}, torch {one['versions']['torch']}; "
        f"weights {one['model_id']}; {one['setting']['prompts']} prompts" for one in found
    ]  # fmt: skip
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    plots = [f"![Everything tried for moss{one['setting']['k']}](images/{one['plot']})" for one in found if one["plot"]]
    return "\n\n".join([_TEXT, commands, "\n".join(conditions), table, *plots]) + "\n"


def _lines(found: dict[str, Any]) -> list[list[str]]:
    setting = found["setting"]
    return [
        [found["model"], str(setting["k"]), row["name"], ", ".join(f"{b:.3g}" for b in row["bounds"]), str(row["tokens"]),
         setting["metric"], _interval(row["value"], ""), _interval(row["gain"], "+")]
        for row in found["equal_tokens"]
    ]  # fmt: skip


def _interval(of: dict[str, float] | None, sign: str) -> str:
    return "" if of is None else f"{of['value']:{sign}.3f} [{of['low']:{sign}.3f}, {of['high']:{sign}.3f}]"
