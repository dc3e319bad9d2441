"""Results on disk, and the page and pictures that are made from all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_moss.images import write_files

from ..bench import RESULTS, ROOT
from ..bench import store as benchmarks
from .analysis import Study
from .calibration import store as calibrations
from .order import Order
from .plot import grid, pareto
from .rows import RENDER
from .run import FORMAT
from .tables import GRID, PLOT, image_name, page

PAGE = ROOT / "docs" / "quality.md"
IMAGES = ROOT / "docs" / "images"


def save(order: Order, result: dict[str, Any], pictures: Mapping[tuple[int, str], bytes], folder: Path) -> Path:
    """Store a result and the grid of its shown pictures, in place of older ones of the same model.

    The grid goes to docs/images, as only there the page finds it; with another folder than the usual one, beside the result.
    """
    path = folder / f"quality-{result['setting']['model']}.json"
    prompts = {n: order.cases[n].prompt for n in sorted({n for n, _ in pictures})}
    sheet = grid(pictures, [RENDER, *order.methods], prompts)
    images = IMAGES if folder == RESULTS else folder
    write_files({path: as_json(result), images / image_name(result, GRID): sheet})
    return path


def as_json(result: dict[str, Any]) -> bytes:
    """A result as a file, a list on one line."""
    text = json.dumps(result, indent=1)
    return (re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n").encode()


def stored(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All stored results, by name.

    Raises:
        ValueError: a file is no result of this version.
    """
    return [benchmarks.read_result(path, FORMAT, "evaluate") for path in sorted(folder.glob("quality-*.json"))]


def write_page(folder: Path = RESULTS, target: Path = PAGE) -> Path:
    """Write docs/quality.md and its plots anew from all stored results."""
    results = stored(folder)
    plots = {target.parent / "images" / image_name(result, PLOT): pareto(Study(result)) for result in results}
    text = "\n".join(filter(None, [page(results, benchmarks.stored()), calibrations.section(calibrations.stored(folder))]))
    write_files({target: text.encode(), **plots})
    return target
