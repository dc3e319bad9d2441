"""Results on disk, and the page that is made from all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from comfy_moss.images import write_files

from . import PAGE, RESULTS
from .order import default_pixels
from .run import FORMAT
from .tables import page


def result_name(result: dict[str, Any]) -> str:
    """<hardware>-<shape>-<precision>.json, and behind it what differs from the usual setting."""
    hardware, setting = result["hardware"], result["setting"]
    usual = {
        setting["pixels"]: default_pixels(setting["shape"]),
        setting["aspect"]: "1:1",
        "guided" if setting["guided"] else "unguided": "guided",
        "graphs" if setting.get("graphs") else "": "",
        setting["backend"]: "auto" if "capability" in hardware else "torch",
    }
    parts = [hardware["device"], setting["shape"], setting["precision"]]
    parts += [found for found, expected in usual.items() if found != expected]
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-") + ".json"


def save(result: dict[str, Any], folder: Path) -> Path:
    """Store a result under its own name, in place of an older one of the same hardware and setting."""
    path = folder / result_name(result)
    write_files({path: as_json(result)})
    return path


def as_json(result: dict[str, Any]) -> bytes:
    """A result as a file."""
    return (json.dumps(result, indent=1) + "\n").encode()


def stored(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All stored results, by name.

    Raises:
        ValueError: a file is no result of this version.
    """
    others = ("quality-", "calibration-")  # of evaluate and calibrate
    return [read_result(path, FORMAT, "bench") for path in sorted(folder.glob("*.json")) if not path.name.startswith(others)]


def read_result(path: Path, version: int, command: str) -> dict[str, Any]:
    """A result that `command` stored in this version of its format.

    Raises:
        ValueError: the file is none.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["format"] == version:
            return result
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no result that this version's {command} stored; {command} again, or take the file away")


def write_page(folder: Path = RESULTS, target: Path = PAGE) -> Path:
    """Write docs/performance.md anew from all stored results."""
    write_files({target: page(stored(folder)).encode()})
    return target
