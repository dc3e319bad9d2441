"""The quality of the methods on the shapes world, against their time: `python -m comfy_moss evaluate`.

Every prompt is drawn by every method, in batches, timed in turn and looked at afterwards.  A batch's file of
rows is written when all its pictures are there: an interrupted evaluation goes on where it stopped, and
processes can share.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from comfy_moss.images import check_writable, png, write_files
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.sampling import NOISE_ID
from comfy_moss.pipeline.plan import Method, Plan, generate
from comfy_moss.request import Checked, Request
from comfy_moss.request import check as check_request

from . import ROOT
from .draw import CODEC, RENDER, Row, draw, look
from .machine import Say, hardware, name_of, versions
from .studio import Studio, check_least, difference, json_bytes, load, parse_methods, read_note, refines
from .suite import TASKS, Case, in_turn, partners, prompts

FORMAT = 1  # of the result; raised when a key changes its meaning
OPTIONS = (
    "model", "methods", "per-task", "seed", "pixels", "device", "precision", "batch", "workers", "correlation"
)
SHOWN = tuple(range(0, 56, 7))  # prompts whose pictures are kept for the page: another task and shape each
_CLAIM = "run.json"

# --- the request --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """A checked evaluation.

    Attributes:
        checked: the model and what its pictures have in common; the request's batch is drawn together.
        methods: by name, in the order of the tables.
        cases: the six tasks in turn, so that any first part of them is balanced.
        others: for every case another one, whose caption its picture should not fulfil but by chance.
        correlated: of how many of the first prompts the correlation is measured.
        workers: processes that share the prompts.
        part: which of them this is, from 0; None = the one that starts them and puts the results together.
        options: what to type for the same again.
    """

    checked: Checked
    methods: dict[str, Method]
    cases: tuple[Case, ...]
    others: tuple[Case, ...]
    correlated: int
    workers: int
    part: int | None
    out: Path | None
    options: tuple[str, ...]

    @property
    def batches(self) -> list[range]:
        """The numbers of the prompts of every batch."""
        count, size = len(self.cases), self.checked.request.batch
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def prompts(self, numbers: Sequence[int]) -> list[str]:
        return [self.cases[n].prompt for n in numbers]


def check(args: argparse.Namespace) -> Evaluation:
    """Refuse what is wrong with the options.

    Raises:
        ValueError: a value out of range, a device that cannot be used, a model that is not there, or an
            output that cannot be written.
    """
    check_least(per_task=(args.per_task, 1), batch=(args.batch, 1), workers=(args.workers, 1))
    check_least(correlation=(args.correlation, 0), seed=(args.seed, 0))
    for path in (args.json, args.out and args.out / _CLAIM, args.save and args.save / "result.json"):
        check_writable(path)
    cases = in_turn(prompts(args.per_task, args.seed))
    checked = check_request(Request.of(args, prompt=cases[0].prompt, method="dense"))
    methods = parse_methods(args.methods, checked.files.published)
    for method in methods.values():
        method.tokens_per_scale(checked.schedule)  # refuses what this schedule cannot carry
    workers = args.workers or usual_workers(checked.device, -(-len(cases) // args.batch))
    options = _options(args, checked, methods=",".join(methods), workers=workers)
    return Evaluation(
        checked, methods, cases, partners(
            cases, args.seed
        ), args.correlation, workers, args.part, args.out, options
    )


def usual_workers(device: torch.device, batches: int) -> int:
    """One on a GPU; on a CPU one a thread, up to four: looking at pictures is no work for several threads."""
    return 1 if device.type != "cpu" else min(torch.get_num_threads(), batches, 4)


def _options(args: argparse.Namespace, checked: Checked, **decided: Any) -> tuple[str, ...]:
    """All that decides the rows and their times, spelled out."""
    decided |= {"pixels": checked.pixels, "device": checked.device, "precision": name_of(checked.dtype)}
    named = {name: decided.get(name, getattr(args, name.replace("-", "_"))) for name in OPTIONS}
    return tuple(word for name, value in named.items() for word in (f"--{name}", str(value)))


# --- rows ---------------------------------------------------------------------------------------------------


def batch_path(folder: Path, batch: int) -> Path:
    return folder / "rows" / f"{batch:05d}.jsonl"


def read_rows(folder: Path) -> list[Row]:
    """All rows of a folder, by prompt.

    Raises:
        ValueError: a file is damaged.
    """
    rows = []
    for path in sorted((folder / "rows").glob("*.jsonl")):
        try:
            rows += [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (ValueError, TypeError):
            raise ValueError(
                f"{path} holds no rows of this version; delete it, and that batch is drawn again"
            ) from None
    return sorted(rows, key=lambda row: row.n)


def claim(folder: Path, setting: dict[str, Any], facts: dict[str, Any]) -> None:
    """Make the folder that of this evaluation, or find that it is.

    Args:
        setting: what decides the rows.
        facts: of where and when they were made, which may change on the way; those of the start are kept.

    Raises:
        ValueError: the folder holds rows of another setting.
    """
    path = folder / _CLAIM
    if not path.exists():
        write_files({path: json_bytes({**facts, "setting": setting})})
    elif wrong := difference((read_note(path) or {}).get("setting", {}), setting):
        raise ValueError(f"{folder} holds another evaluation, of {wrong}; name another folder with --out")


def draw_missing(asked: Evaluation, studio: Studio, folder: Path, say: Say) -> None:
    """Draw and store the batches of this process's share that the folder lacks."""
    share = slice(asked.part or 0, None, 1 if asked.part is None else asked.workers)
    todo = [n for n in range(len(asked.batches))[share] if not batch_path(folder, n).exists()]
    if todo:  # the first picture takes longer; it is not counted
        generate(studio.backbone, studio.recipe(asked.prompts([0]), [0]), Plan(0))
    for done, batch in enumerate(todo, start=1):
        say(f"batch {done} of {len(todo)}")
        numbers = asked.batches[batch]
        cases, others = ([of[n] for n in numbers] for of in (asked.cases, asked.others))
        drawn = draw(studio.backbone, studio.recipe(asked.prompts(numbers), numbers), asked.methods, cases)
        pictures = {
            folder / "pictures" / f"{n:05d}-{name}.png": png(found.images[n - numbers.start])
            for name, found in drawn.items() for n in numbers if n in SHOWN
        }
        rows = look(drawn, numbers, cases, others, asked.correlated - numbers.start)
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        write_files(pictures | {batch_path(folder, batch): lines.encode()})


# --- the whole ----------------------------------------------------------------------------------------------


def draw_part(asked: Evaluation, folder: Path, say: Say) -> None:
    """Draw this process's share of the batches.

    Raises:
        ValueError: the folder holds another evaluation.
    """
    studio = load(asked.checked, asked.prompts(range(len(asked.cases))))
    facts = {
        "command": " ".join(["python -m comfy_moss evaluate", *asked.options]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(asked.checked.device), "versions": versions(),
    }
    claim(folder, setting(asked, studio.backbone), facts)
    draw_missing(asked, studio, folder, say)


def setting(asked: Evaluation, backbone: Backbone) -> dict[str, Any]:
    """All that decides the rows."""
    made, bounds = asked.checked, {
        name: list(m.passes[0].bounds) for name, m in asked.methods.items() if refines(m)
    }
    height, width = (backbone.stride * n for n in backbone.map_grid(made.schedule.grids[-1]))
    return {
        "format": FORMAT, "model": Path(
            made.files.name
        ).name, "model_id": backbone.model_id, "noise": NOISE_ID,
        "methods": list(
            asked.methods
        ), "bounds": bounds, "prompts": len(asked.cases), "seed": made.request.seed,
        "pixels": made.pixels, "width": width, "height": height, "scales": len(made.schedule),
        "cfg": made.files.cfg, "tau": made.files.tau, "device": str(
            made.device
        ), "precision": name_of(made.dtype),
        "batch": made.request.batch, "workers": asked.workers, "correlation": asked.correlated,
    }


def evaluate(asked: Evaluation, say: Say) -> tuple[dict[str, Any], dict[tuple[int, str], bytes]]:
    """Draw, look and put together.

    Args:
        say: told what is being done, a line at a time.

    Returns:
        The result, ready for JSON, and the PNG files of the shown prompts by (number, method).

    Raises:
        ValueError: the folder holds another evaluation, or a worker failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.out or Path(temporary)
        if asked.workers == 1:
            draw_part(asked, folder, say)
        else:
            _run_workers(asked, folder)
        pictures = {_key(path): path.read_bytes() for path in sorted((folder / "pictures").glob("*.png"))}
        return combine(asked, read_note(folder / _CLAIM) or {}, read_rows(folder)), pictures


def _key(path: Path) -> tuple[int, str]:
    number, name = path.stem.split("-", 1)
    return int(number), name


def _run_workers(asked: Evaluation, folder: Path) -> None:
    """Processes, so that what is not torch runs on every core too; they share the threads that torch would
    take."""
    roots = [f"--models={root}" for root in asked.checked.request.models]
    command = [sys.executable, "-m", "comfy_moss", "evaluate", *asked.options, *roots, "--out", str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    threads = max(1, torch.get_num_threads() // asked.workers)
    environment, parts = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}, []
    try:
        for part in range(asked.workers):
            parts.append(subprocess.Popen([*command, "--part", str(part)], env=environment))
        failed = any([process.wait() for process in parts])
    finally:
        for process in parts:
            process.terminate()
            process.wait()
    if failed:
        raise ValueError(
            "a worker stopped with the error above; what it had finished is kept where --out says so"
        )


def combine(asked: Evaluation, claimed: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The result: a pure function of the rows.

    Raises:
        ValueError: rows are missing.
    """
    found: dict[str, list[Row]] = {name: [] for name in (RENDER, CODEC, *asked.methods)}
    for row in rows:
        found[row.method].append(row)
    if any([row.n for row in of] != list(range(len(asked.cases))) for of in found.values()):
        raise ValueError("pictures are missing; run the same command again, and they are drawn")
    told = [row.correlation for row in found["dense"] if row.correlation]
    return claimed | {
        "format": FORMAT,
        "distinct_prompts": len({case.prompt for case in asked.cases}),
        "rows": {name: _columns(of, asked) for name, of in found.items()},
        "correlation": {k: [round(values[k], 4) for values in told] for k in (told[0] if told else {})},
    }


def _columns(rows: Sequence[Row], asked: Evaluation) -> dict[str, Any]:
    """One name's rows; what is None in all of them is left out.  Prompts follow one another task by task in
    turn."""
    columns: dict[str, Any] = {
        "hits": {task: _digits([row.hit for row in rows[n :: len(TASKS)]]) for n, task in enumerate(TASKS)},
        "shuffled": {
            task: _digits([row.shuffled for row in rows[n :: len(TASKS)]]) for n, task in enumerate(TASKS)
        },
        "textured": _digits([row.textured for row in rows]),
        "texture": [round(row.texture, 6) for row in rows],
    }
    if rows[0].psnr is not None:
        columns |= {
            "psnr": [round(row.psnr, 2) for row in rows], "ssim": [round(row.ssim, 4) for row in rows]
        }
    if rows[0].draw_s is not None:
        first = [rows[batch.start] for batch in asked.batches]
        columns |= {"tokens": rows[0].tokens, "kv_bytes": rows[0].kv_bytes}
        columns |= {name: [round(getattr(row, name), 5) for row in first] for name in ("draw_s", "decode_s")}
    return columns


def _digits(values: Sequence[bool | None]) -> str:
    return "".join("-" if value is None else str(int(value)) for value in values)
