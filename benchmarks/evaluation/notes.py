"""Notes that say how results were made, so that results of two kinds are never mixed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def read_note(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def difference(old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str] = ()) -> str | None:
    """The first entry in which an old note differs from what is wanted now, in words; None where they agree."""
    for name, value in json.loads(json.dumps(new)).items():
        if name not in ignored and old.get(name) != value:
            return f"{name} {old.get(name)!r}, not {value!r}"
    return None
