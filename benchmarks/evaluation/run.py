"""The evaluation itself: draw what is missing, in one process or in several, and put the rows together."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from comfy_moss.model.sampling import NOISE_ID

from ..bench.machine import hardware, name_of, versions
from ..suite import TASKS
from .draw import Say, Studio, draw_missing, open_studio
from .order import Order
from .rows import CODEC, RENDER, Row, claim, read_claim, read_rows

ROOT = Path(__file__).resolve().parent.parent.parent
FORMAT = 1  # of the result; raised when a key changes its meaning


def draw_part(order: Order, folder: Path, say: Say) -> None:
    """Draw this process's share of the batches.

    Raises:
        ValueError: the folder holds another evaluation.
    """
    studio = open_studio(order)
    facts = {
        "command": " ".join(["python -m comfy_moss evaluate", *order.options]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(order.device),
        "versions": versions(),
    }
    claim(folder, setting(order, studio), facts)
    share = slice(order.part or 0, None, 1 if order.part is None else order.workers)
    draw_missing(studio, folder, share, say)


def setting(order: Order, studio: Studio) -> dict[str, Any]:
    """All that decides the rows."""
    height, width = (studio.backbone.stride * n for n in studio.backbone.map_grid(order.schedule.grids[-1]))
    bounds = {name: list(m.passes[0].bounds) for name, m in order.methods.items() if m.name == "moss"}
    return {
        "format": FORMAT, "model": Path(order.files.name).name, "model_id": studio.backbone.model_id, "noise": NOISE_ID,
        "methods": list(order.methods), "bounds": bounds,
        "prompts": len(order.cases), "seed": order.seed, "pixels": order.pixels,
        "width": width, "height": height, "scales": len(order.schedule), "cfg": order.files.cfg, "tau": order.files.tau,
        "device": str(order.device), "precision": name_of(order.dtype), "batch": order.batch, "workers": order.workers,
        "correlation": order.correlated,
    }  # fmt: skip


def evaluate(order: Order, say: Say) -> tuple[dict[str, Any], dict[tuple[int, str], bytes]]:
    """Draw, look and put together.

    Args:
        say: told what is being done, a line at a time.

    Returns:
        The result, ready for JSON, and the PNG files of the shown prompts by (number, method).

    Raises:
        ValueError: the order's folder holds another evaluation, or a worker failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = order.out or Path(temporary)
        if order.workers == 1:
            draw_part(order, folder, say)
        else:
            _run_workers(order, folder)
        pictures = {_key(path): path.read_bytes() for path in sorted((folder / "pictures").glob("*.png"))}
        return combine(order, read_claim(folder), read_rows(folder)), pictures


def _key(path: Path) -> tuple[int, str]:
    number, name = path.stem.split("-", 1)
    return int(number), name


def _run_workers(order: Order, folder: Path) -> None:
    """Processes of their own, so that what is not torch runs on every core too; they share the threads that torch would take."""
    threads = max(1, torch.get_num_threads() // order.workers)
    command = [sys.executable, "-m", "comfy_moss", "evaluate", *order.options, *order.roots, "--out", str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    parts = []
    try:
        for part in range(order.workers):
            parts.append(subprocess.Popen([*command, "--part", str(part)], env=environment))
        failed = any([process.wait() for process in parts])
    finally:
        for process in parts:
            process.terminate()
            process.wait()
    if failed:
        raise ValueError("a worker stopped with the error above; what it had finished is kept where --out says so")


# --- putting together -------------------------------------------------------------------------------------------


def combine(order: Order, claimed: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The result: a pure function of the rows.

    Raises:
        ValueError: rows are missing.
    """
    names = [RENDER, CODEC, *order.methods]
    found: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows:
        found[row.method].append(row)
    if any([row.n for row in found[name]] != list(range(len(order.cases))) for name in names):
        raise ValueError("pictures are missing; run the same command again, and they are drawn")
    return claimed | {
        "format": FORMAT,
        "distinct_prompts": len({case.prompt for case in order.cases}),
        "rows": {name: _columns(found[name], order) for name in names},
        "correlation": _correlations(found["dense"]),
    }


def _columns(rows: Sequence[Row], order: Order) -> dict[str, Any]:
    """One name's rows; what is None in all of them is left out.  Prompts follow one another task by task in turn."""
    columns: dict[str, Any] = {
        "hits": {task: _digits([row.hit for row in rows[n :: len(TASKS)]]) for n, task in enumerate(TASKS)},
        "shuffled": {task: _digits([row.shuffled for row in rows[n :: len(TASKS)]]) for n, task in enumerate(TASKS)},
        "textured": "".join("-" if row.textured is None else str(int(row.textured)) for row in rows),
        "texture": [round(row.texture, 6) for row in rows],
    }
    if rows[0].psnr is not None:
        columns |= {"psnr": [round(row.psnr, 2) for row in rows], "ssim": [round(row.ssim, 4) for row in rows]}
    if rows[0].draw_s is not None:
        first = [rows[batch.start] for batch in order.batches]
        columns |= {
            "tokens": rows[0].tokens,
            "kv_bytes": rows[0].kv_bytes,
            "draw_s": [round(row.draw_s, 5) for row in first],
            "decode_s": [round(row.decode_s, 5) for row in first],
        }
    return columns


def _digits(values: Sequence[bool]) -> str:
    return "".join(str(int(value)) for value in values)


def _correlations(dense: Sequence[Row]) -> dict[str, list[float]]:
    told = [row.correlation for row in dense if row.correlation]
    return {k: [round(values[k], 4) for values in told] for k in (told[0] if told else {})}
