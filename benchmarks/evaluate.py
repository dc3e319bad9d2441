"""The quality of the methods on the shapes world, against their time: `python -m comfy_moss evaluate`.

Every prompt is drawn by every method, in batches, timed in turn and looked at afterwards.  A batch's rows are
one file of the folder, written when all its pictures are there: an interrupted evaluation goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from comfy_moss.images import check_writable, png
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.found import found_plans
from comfy_moss.model.sampling import NOISE_ID
from comfy_moss.pipeline.budget import check_budget
from comfy_moss.pipeline.plan import Method, Plan, generate, share_of_dense
from comfy_moss.request import Checked, Request
from comfy_moss.request import check as check_request

from .draw import CODEC, RENDER, Row, draw, look
from .machine import hardware, name_of, versions
from .studio import CLAIM, Studio, check_least, claim, load, parse_methods, refines
from .suite import TASKS, Case, in_turn, partners, prompts
from .workers import Batches, Workers

FORMAT = 1  # of the result; raised when a key changes its meaning
OPTIONS = (
    "model",
    "methods",
    "per-task",
    "seed",
    "pixels",
    "cfg",
    "device",
    "precision",
    "batch",
    "workers",
    "correlation",
)
SHOWN = tuple(range(0, 56, 7))  # prompts whose pictures are kept for the page: another task and shape each

# --- the request -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """A checked evaluation.

    Attributes:
        checked: the model and what its pictures have in common; the request's batch is drawn together.
        methods: by name, in the order of the tables.
        cases: the six tasks in turn, so that any first part of them is balanced.
        others: for every case another one, whose caption its picture should not fulfil but by chance.
        correlated: of how many of the first prompts the correlation is measured.
        out: folder of the batches; None = nothing is kept.
        name: of the stored result, beside the model's.
        options: what to type for the same again.
    """

    checked: Checked
    methods: dict[str, Method]
    cases: tuple[Case, ...]
    others: tuple[Case, ...]
    correlated: int
    workers: Workers
    out: Path | None
    name: str
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
    check_least(per_task=(args.per_task, 1), batch=(args.batch, 1))
    check_least(correlation=(args.correlation, 0), seed=(args.seed, 0))
    for path in (args.json, args.out and args.out / CLAIM, args.save and args.save / "result.json"):
        check_writable(path)
    if args.cluster and not args.out:
        raise ValueError("a cluster's machines need a folder that all of them can write; name it with --out")
    cases = in_turn(prompts(args.per_task, args.seed))
    checked = check_request(Request.of(args, prompt=cases[0].prompt, method="dense"))
    names = [args.methods, *(_within(budget, checked) for budget in args.budgets)]
    methods = parse_methods(",".join(names), checked.published, checked.guidance.asked)
    for method in methods.values():
        method.tokens_per_scale(checked.schedule)  # refuses what this schedule cannot carry
    workers = Workers.of(args, checked.device, -(-len(cases) // args.batch))
    options = _options(args, checked, methods=",".join(methods), workers=workers.count)
    others = partners(cases, args.seed)
    return Evaluation(
        checked, methods, cases, others, args.correlation, workers, args.out, args.name, options
    )


def _within(budget: float, checked: Checked) -> str:
    """Name of the best plan that was found for this model and schedule at this share of dense's work."""
    check_budget(budget)
    name, scales = Path(checked.files.name).name, len(checked.schedule)
    found = [one for one in found_plans() if (one.model, one.scales) == (name, scales) and one.work <= budget]
    if not found:
        raise ValueError(
            f"no plan was found for {name} on {scales} scales at {budget:g} of dense's work or less"
        )
    return max(found, key=lambda one: (one.score, -one.work)).name


def _options(args: argparse.Namespace, checked: Checked, **decided: Any) -> tuple[str, ...]:
    """All that decides the rows and their times, spelled out."""
    decided |= {"pixels": checked.pixels, "device": checked.device, "precision": name_of(checked.dtype)}
    named = {name: decided.get(name, getattr(args, name.replace("-", "_"))) for name in OPTIONS}
    told = {
        name: f'"{value}"' if " " in str(value) else str(value)
        for name, value in named.items()
        if value is not None
    }
    return tuple(word for name, value in told.items() for word in (f"--{name}", value))


# --- batches ----------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Easel:
    """An evaluation and the model that draws it."""

    asked: Evaluation
    studio: Studio

    @classmethod
    def of(cls, asked: Evaluation) -> Easel:
        return cls(asked, load(asked.checked, asked.prompts(range(len(asked.cases)))))

    @cached_property
    def backbone(self) -> Backbone:
        """The model after a first picture, which takes longer and is not counted."""
        generate(self.studio.backbone, self.studio.recipe(self.asked.prompts([0]), [0]), Plan(0))
        return self.studio.backbone


def draw_batch(easel: Easel, batch: int) -> dict[Path, bytes]:
    """The files of a batch: its rows, and the pictures that are kept."""
    asked, studio = easel.asked, easel.studio
    numbers = asked.batches[batch]
    cases, others = ([of[n] for n in numbers] for of in (asked.cases, asked.others))
    drawn = draw(easel.backbone, studio.recipe(asked.prompts(numbers), numbers), asked.methods, cases)
    pictures = {
        asked.out / "pictures" / f"{n:05d}-{name}.png": png(found.images[n - numbers.start])
        for name, found in drawn.items() for n in numbers if n in SHOWN
    }
    rows = look(drawn, numbers, cases, others, asked.correlated - numbers.start)
    lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    return pictures | {batch_path(asked.out, batch): lines.encode()}


# --- the whole --------------------------------------------------------------------------------------------


def evaluate(asked: Evaluation) -> tuple[dict[str, Any], dict[tuple[int, str], bytes]]:
    """Draw, look and put together.

    Returns:
        The result, ready for JSON, and the PNG files of the shown prompts by (number, method).

    Raises:
        ValueError: the folder holds another evaluation, or workers are lost time and again.
    """
    with tempfile.TemporaryDirectory() as temporary:
        asked = replace(asked, out=asked.out or Path(temporary))
        easel = Easel.of(asked)
        backbone = easel.studio.backbone
        note = claim(asked.out, setting(asked, backbone), _facts(asked), "evaluation")
        with Batches(asked.workers, asked, Easel.of, draw_batch) as batches:
            batches.loaded = easel
            batches.run({batch: batch_path(asked.out, batch) for batch in range(len(asked.batches))})
        pictures = {_key(path): path.read_bytes() for path in sorted((asked.out / "pictures").glob("*.png"))}
        result = combine(asked, note, read_rows(asked.out))
        return result | {"name": asked.name, "work": _work(asked, backbone)}, pictures


def _key(path: Path) -> tuple[int, str]:
    number, name = path.stem.split("-", 1)
    return int(number), name


def _facts(asked: Evaluation) -> dict[str, Any]:
    """When and where rows are drawn."""
    return {
        "command": " ".join(["python -m comfy_moss evaluate", *asked.options]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(asked.checked.device), "versions": versions(),
        "workers": asked.workers.count, "cluster": asked.workers.cluster is not None,
    }


def setting(asked: Evaluation, backbone: Backbone) -> dict[str, Any]:
    """All that decides the rows."""
    made, methods = asked.checked, asked.methods
    height, width = (backbone.stride * n for n in backbone.map_grid(made.schedule.grids[-1]))
    return {
        "format": FORMAT,
        "model": Path(made.files.name).name,
        "model_id": backbone.model_id,
        "noise": NOISE_ID,
        "methods": list(methods),
        "plans": {name: str(m) for name, m in methods.items() if isinstance(m, Plan)},
        "bounds": {name: list(m.passes[0].bounds) for name, m in methods.items() if refines(m)},
        "prompts": len(asked.cases),
        "seed": made.request.seed,
        "pixels": made.pixels,
        "width": width,
        "height": height,
        "scales": len(made.schedule),
        "cfg": made.guidance.asked,
        "tau": made.sampling.tau,
        "device": str(made.device),
        "precision": name_of(made.dtype),
        "batch": made.request.batch,
        "correlation": asked.correlated,
    }


def _work(asked: Evaluation, backbone: Backbone) -> dict[str, float]:
    """Every method's multiply-adds as a share of dense's."""
    made = asked.checked
    guided, depth = made.guidance.active(len(made.schedule)), backbone.depth
    return {
        name: round(share_of_dense(method, made.schedule, backbone.work, guided, depth), 5)
        for name, method in asked.methods.items()
    }


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
