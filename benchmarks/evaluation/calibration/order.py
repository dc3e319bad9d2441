"""One calibration from the command line: check the order before anything slow, then search, compare and plot."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from comfy_moss import request as requests
from comfy_moss.images import check_writable, write_files
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.schedule import Schedule
from comfy_moss.pipeline.dispatch import RefinePass

from ...suite import TASKS, Case, prompts
from ..loading import load
from ..order import in_turn
from .compare import Row, compare, rivals_of
from .measure import Measure, prepare
from .options import PAPER
from .plot import Chart, draw_chart
from .quality import METRICS, Quality
from .search import Calibration, CalibrationConfig, OnTrial, calibrate, calibrate_within
from .trials import Bounds, Trials

PROMPT_SEED = 4242  # other prompts than the evaluation's
Count = Callable[[str], Callable[[int, int], None]]  # what is counted -> told (done, in all)
_NOT_MEASURED = ("prompt", "method", "plan", "bounds", "skip", "device", "torch")  # of a recipe: decides no metric's value


@dataclass(frozen=True)
class Order:
    """A checked order.

    Attributes:
        prompts: what is drawn, one picture each.
        cases: what the prompts ask for; () where only the user knows.
        tokens: refine tokens a picture that may be spent; None = the tolerance decides.
        draws: random rivals in the comparison.
        batch: pictures drawn together.
        asked: options as they were typed, for the same again.
    """

    job: requests.Checked
    config: CalibrationConfig
    metric: str
    prompts: tuple[str, ...]
    cases: tuple[Case, ...]
    state: Path | None
    plot: Path | None
    tokens: int | None
    draws: int
    batch: int
    asked: dict[str, Any]

    @property
    def quality(self) -> Quality:
        return METRICS[self.metric]

    @property
    def tasks(self) -> list[str]:
        """Of every picture, for the bootstrap."""
        return [case.task for case in self.cases] or ["all"] * len(self.prompts)


def check(args: argparse.Namespace) -> Order:
    """Refuse what is wrong with the order.

    Raises:
        OSError: the prompts cannot be read.
        ValueError: a value out of range, a file that cannot be written, or a metric that cannot judge these prompts.
    """
    check_writable(args.save and args.save / "calibration.json")
    quality = METRICS[args.metric]
    config = CalibrationConfig(args.k, quality.tolerance if args.tolerance is None else args.tolerance, args.step, args.order)
    for name, value, least in (("prompts", args.prompts, 1), ("batch", args.batch, 1), ("compare", args.compare, 0)):
        if value < least:
            raise ValueError(f"--{name} must be {least} or more, got {value}")
    if args.tokens is not None and args.tolerance is not None:
        raise ValueError("--tokens and --tolerance cannot be had together; leave one of them out")
    if args.prompt_file and quality.needs_cases:
        raise ValueError(f"the metric {args.metric} judges its own prompts only; leave --prompt-file out, or choose another")
    cases = () if args.prompt_file else in_turn(prompts(-(-args.prompts // len(TASKS)), PROMPT_SEED))[: args.prompts]
    texts = tuple(case.prompt for case in cases) or _read_prompts(args.prompt_file)
    if args.state and args.state.is_dir():
        raise ValueError(f"{args.state} is a folder; name a file in it")
    drawing = {"prompt": texts[0], "batch": len(texts), "output": args.plot, "maps": None}
    method = {"method": "moss", "bounds": [100.0] * args.k, "skip": None, "plan": None}
    job = requests.check(requests.Request.of(args, **drawing, **method))
    tokens = _paper_tokens(job, config.k) if args.tokens == PAPER else args.tokens
    return Order(job, config, args.metric, texts, cases, args.state, args.plot, tokens, args.compare, args.batch, vars(args))


def _paper_tokens(job: requests.Checked, k: int) -> int:
    if k not in job.files.published.bounds:
        raise ValueError(f"no bounds are printed for this model and k = {k}; give --tokens a number")
    return _spend(job.schedule, job.files.published.bounds[k])


def _read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines are nothing."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} holds bytes that are not text; save it in UTF-8") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ValueError(f"{path} holds no prompts; write one in each line")
    return found


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        tokens: that the found bounds spend a picture.
        rows: the comparison at equal tokens, the yardstick first.
        model_id: of the weights.
    """

    found: Calibration
    tokens: int
    rows: list[Row]
    model_id: str


def run(order: Order, count: Count) -> Result:
    """Draw the drafts, search, compare, and write the plot.

    Args:
        count: tells what is being done and how far it is.

    Raises:
        ValueError: the state is another metric's, or the model's files are damaged.
        OSError: a file cannot be written.
    """
    studio = load(order.job, order.prompts)
    trials = Trials.open(order.state, _about(order, studio.backbone))
    method, schedule = order.job.method, order.job.schedule
    measure = prepare(studio, method, order.quality, order.prompts, order.cases, order.batch, count("drafts"))
    found = _search(order, measure, trials, count("tries"))
    rivals = rivals_of(found.bounds, order.job.files.published.bounds.get(order.config.k), schedule, order.draws)
    rows = compare(measure, schedule, rivals, order.tasks, count("rivals"))
    if order.plot:
        write_files({order.plot: draw_chart(_chart(order, found, rows, trials))})
    return Result(found, _spend(schedule, found.bounds), rows, studio.backbone.model_id)


def _search(order: Order, measure: Measure, trials: Trials, tries: OnTrial) -> Calibration:
    if order.tokens is None:
        found = calibrate(measure, order.config, trials, tries)
    else:
        found = calibrate_within(measure, order.config, order.tokens, partial(_spend, order.job.schedule), trials, tries)
    tries(len(trials.values), len(trials.values))  # fewer than announced, most times
    return found


def _spend(schedule: Schedule, bounds: Bounds) -> int:
    return sum(RefinePass.of_last(bounds).counts(schedule))


def _chart(order: Order, found: Calibration, rows: list[Row], trials: Trials) -> Chart:
    schedule, k = order.job.schedule, order.config.k
    points = [(_spend(schedule, bounds), value) for bounds, value in trials.values.items() if len(bounds) == k]
    yardstick = {row.name: (row.tokens, row.value.value) for row in rows[:1]}
    marks = yardstick | {"found": (_spend(schedule, found.bounds), found.value)}
    lines = {"all at the finest": found.reference}
    if order.tokens is None:
        lines["tolerance"] = found.reference - order.config.tolerance
    return Chart(f"moss{k}, {len(order.prompts)} prompts", "refine tokens a picture", order.metric, points, marks, lines)


def _about(order: Order, backbone: Backbone) -> dict[str, Any]:
    """All that decides the metric's values but the bounds."""
    recipe = requests.recipe_of(order.job, backbone, order.job.request.seed)
    digest = hashlib.sha256("\n".join(order.prompts).encode()).hexdigest()
    metric = {"metric": order.metric, "prompts": len(order.prompts), "prompts_sha256": digest}
    return metric | {name: value for name, value in recipe.items() if name not in _NOT_MEASURED}
