"""Bounds of MoSs-k searched for a model by a metric: `python -m comfy_moss calibrate`.

Every draft and its dense picture are drawn once, and each try costs a refine step only.  What is found stands
beside the paper's bounds and random ones at equal tokens, prompt by prompt.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comfy_moss.images import check_writable, to_image, write_files
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.cache import KVCache
from comfy_moss.model.schedule import Schedule
from comfy_moss.pipeline.dispatch import RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import Draft, draw_draft
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.plan import Plan
from comfy_moss.pipeline.refine import composite, finish_dense, refine
from comfy_moss.request import Checked, Request, recipe_of
from comfy_moss.request import check as check_request

from .analysis import Interval, mean, weights
from .machine import hardware, versions
from .metrics import METRICS, Drawn, Pair, Quality
from .plots import scatter
from .search import Bounds, Calibration, CalibrationConfig, OnTrial, Trials, calibrate, calibrate_within
from .studio import Studio, check_least, load
from .suite import TASKS, Case, in_turn, prompts

FORMAT = 1  # of the stored file; raised when a key changes its meaning
PAPER = "paper"  # the budget of the bounds printed for this family of models
PROMPT_SEED = 4242  # other prompts than the evaluation's
KEPT = 4 * 2**30  # bytes of KV caches kept between tries; what is beyond is rebuilt in every try
OPTIONS = ("k", "metric", "tokens", "tolerance", "step", "order", "prompts", "compare", "seed", "model")
Count = Callable[[str], Callable[[int, int], None]]  # what is counted -> told (done, in all)
# of a recipe: decides no value
_NOT_MEASURED = ("prompt", "method", "plan", "bounds", "skip", "device", "torch")
_HALVINGS = 60

# --- the request --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibrating:
    """A checked calibration.

    Attributes:
        checked: the model; its method says only how many scales are refined, and how.
        prompts: what is drawn, one picture each.
        cases: what the prompts ask for; () where only the user knows.
        tokens: refine tokens a picture that may be spent; None = the tolerance decides.
        draws: random rivals in the comparison.
        batch: pictures drawn together.
        command: what to type for the same again.
    """

    checked: Checked
    config: CalibrationConfig
    metric: str
    prompts: tuple[str, ...]
    cases: tuple[Case, ...]
    state: Path | None
    plot: Path | None
    tokens: int | None
    draws: int
    batch: int
    command: str

    @property
    def quality(self) -> Quality:
        return METRICS[self.metric]

    @property
    def tasks(self) -> list[str]:
        """Of every picture, for the bootstrap."""
        return [case.task for case in self.cases] or ["all"] * len(self.prompts)


def check(args: argparse.Namespace) -> Calibrating:
    """Refuse what is wrong with the options.

    Raises:
        OSError: the prompts cannot be read.
        ValueError: a value out of range, a file that cannot be written, or a metric that cannot judge these
            prompts.
    """
    check_writable(args.save and args.save / "calibration.json")
    check_least(prompts=(args.prompts, 1), batch=(args.batch, 1), compare=(args.compare, 0))
    tolerance = METRICS[args.metric].tolerance if args.tolerance is None else args.tolerance
    config = CalibrationConfig(args.k, tolerance, args.step, args.order)
    _check_together(args)
    count = -(-args.prompts // len(TASKS))
    cases = () if args.prompt_file else in_turn(prompts(count, PROMPT_SEED))[: args.prompts]
    texts = tuple(case.prompt for case in cases) or _read_prompts(args.prompt_file)
    moss = {"method": "moss", "bounds": [100.0] * args.k}
    drawing = {"prompt": texts[0], "batch": len(texts), "output": args.plot}
    checked = check_request(Request.of(args, **drawing, **moss))
    tokens = _paper_tokens(checked, config.k) if args.tokens == PAPER else args.tokens
    return Calibrating(
        checked, config, args.metric, texts, cases, args.state, args.plot, tokens, args.compare, args.batch,
        _command(args),
    )


def _check_together(args: argparse.Namespace) -> None:
    if args.tokens is not None and args.tolerance is not None:
        raise ValueError("--tokens and --tolerance cannot be had together; leave one of them out")
    if args.prompt_file and METRICS[args.metric].needs_cases:
        raise ValueError(
            f"the metric {args.metric} judges its own prompts only; leave --prompt-file out, "
            "or choose another"
        )
    if args.state and args.state.is_dir():
        raise ValueError(f"{args.state} is a folder; name a file in it")


def _command(args: argparse.Namespace) -> str:
    given = {name: getattr(args, name) for name in OPTIONS}
    return " ".join(
        ["python -m comfy_moss calibrate", *(f"--{n} {v}" for n, v in given.items() if v is not None)]
    )


def _paper_tokens(checked: Checked, k: int) -> int:
    if k not in checked.files.published.bounds:
        raise ValueError(f"no bounds are printed for this model and k = {k}; give --tokens a number")
    return spend(checked.schedule, checked.files.published.bounds[k])


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


# --- measuring bounds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Drafts with all that does not depend on the bounds; `cache` is None where there was no room."""

    draft: Draft
    cache: KVCache | None
    frequency: Tensor
    dense: Drawn
    cases: Sequence[Case]


@dataclass(frozen=True)
class Measure:
    """A metric for `search.calibrate`: bounds -> the mean of a quality over all pictures."""

    backbone: Backbone
    method: Plan
    quality: Quality
    batches: tuple[Batch, ...]

    def values(self, bounds: Bounds) -> np.ndarray:
        """The quality of every picture, (P,) float64."""
        pairs = (Pair(self.draw(batch, bounds), batch.dense, batch.cases) for batch in self.batches)
        return np.concatenate([self.quality.values(pair).numpy().astype(float) for pair in pairs])

    def __call__(self, bounds: Bounds) -> float:
        return float(self.values(bounds).mean())

    def draw(self, batch: Batch, bounds: Bounds) -> Drawn:
        step = replace(self.method.passes[0], bounds=tuple(bounds))
        dispatch = dispatch_tokens(batch.frequency, batch.draft.recipe.schedule, step)
        residual = refine(self.backbone, batch.draft, dispatch, step, batch.cache)
        return _finished(self.backbone, composite(self.backbone, batch.draft, residual).total, self.quality)


def prepare(
    asked: Calibrating, studio: Studio, quality: Quality, on_batch: Callable[[int, int], None]
) -> Measure:
    """Draw all drafts, and finish each of them densely.  Picture n has the seed of the request + n.

    Args:
        on_batch: told how many drafts of how many are done; may raise to cancel.
    """
    batches, kept, seed, plan = [], 0, asked.checked.request.seed, asked.checked.method
    for start in range(0, len(asked.prompts), asked.batch):
        part, cases = (of[start : start + asked.batch] for of in (asked.prompts, asked.cases))
        recipe = studio.recipe(part, range(seed + start, seed + start + len(part)))
        draft, cache = draw_draft(studio.backbone, recipe, plan.on(recipe.schedule).draft)
        dense = _finished(studio.backbone, finish_dense(studio.backbone, draft, cache)[0].total, quality)
        kept += cache.nbytes
        frequency = frequency_map(draft.total, plan.window)
        batches.append(Batch(draft, cache if kept <= KEPT else None, frequency, dense, cases))
        on_batch(start + len(part), len(asked.prompts))
    return Measure(studio.backbone, plan, quality, tuple(batches))


@torch.inference_mode()
def _finished(backbone: Backbone, total: Tensor, quality: Quality) -> Drawn:
    images = to_image(backbone.decode(total.to(backbone.device))) if quality.looks else None
    return Drawn(images, (total.cpu(),))


# --- at equal tokens ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        tokens: that the refine step draws a picture.
        value: mean of the metric and its 95 % interval over other draws of prompts.
        gain: over the yardstick, pictures paired; None for the yardstick itself.
    """

    name: str
    bounds: Bounds
    tokens: int
    value: Interval
    gain: Interval | None = None


def spend(schedule: Schedule, bounds: Bounds) -> int:
    """Refine tokens a picture."""
    return sum(RefinePass.of_last(bounds).counts(schedule))


def at_tokens(bounds: Bounds, schedule: Schedule, tokens: int) -> Bounds:
    """The bounds times one factor, but never above 100, so that they spend at most that many tokens, nearly
    as many.

    Where all bounds at their limit spend fewer, that limit.
    """
    low, high = 0.0, 100 / max(min(b for b in bounds if b > 0), 1e-3) if any(bounds) else 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = spend(schedule, _times(bounds, middle)) <= tokens
        low, high = (middle, high) if fits else (low, middle)
    return _times(bounds, low)


def _times(bounds: Bounds, factor: float) -> Bounds:
    return tuple(min(100.0, b * factor) for b in bounds)


def random_bounds(k: int, schedule: Schedule, tokens: int, count: int, seed: int = 0) -> list[Bounds]:
    """Bounds drawn at random and brought to that number of tokens: the chance rivals of a search."""
    rng = np.random.default_rng(seed)
    drawn = [tuple(sorted(rng.uniform(1, 100, k).tolist(), reverse=True)) for _ in range(count)]
    return [at_tokens(bounds, schedule, tokens) for bounds in drawn]


def compare(
    measure: Measure, schedule: Schedule, rivals: Mapping[str, Bounds], tasks: Sequence[str],
    on_rival: Callable[[int, int], None],
) -> list[Row]:
    """Measure each; the first is the yardstick.

    Args:
        tasks: of every picture; the bootstrap draws within each of them.
        on_rival: told how many of how many are measured; may raise to cancel.
    """
    weight, first, rows = weights(tasks), None, []
    for name, bounds in rivals.items():
        values = measure.values(bounds)
        gain = None if first is None else mean(values - first, weight)
        first = values if first is None else first
        rows.append(Row(name, bounds, spend(schedule, bounds), mean(values, weight), gain))
        on_rival(len(rows), len(rivals))
    return rows


def rivals_of(found: Bounds, paper: Bounds | None, schedule: Schedule, draws: int) -> dict[str, Bounds]:
    """What a search's result is compared with, the yardstick first, all at its tokens.

    It is the paper's bounds where there are some for this k, else the found ones.
    """
    k, tokens = len(found), spend(schedule, paper or found)
    chance = {f"random {n}": b for n, b in enumerate(random_bounds(k, schedule, tokens, draws), start=1)}
    named = {"paper": paper} if paper else {}
    return named | {"found": at_tokens(found, schedule, tokens)} | chance | {"draft": (0.0,) * k}


# --- the whole ----------------------------------------------------------------------------------------------


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


def run(asked: Calibrating, count: Count) -> Result:
    """Draw the drafts, search, compare, and write the plot.

    Args:
        count: tells what is being done and how far it is.

    Raises:
        ValueError: the state is another metric's, or the model's files are damaged.
        OSError: a file cannot be written.
    """
    studio, schedule = load(asked.checked, asked.prompts), asked.checked.schedule
    trials = Trials.open(asked.state, _about(asked, studio.backbone))
    measure = prepare(asked, studio, asked.quality, count("drafts"))
    found = _search(asked, measure, trials, count("tries"))
    paper = asked.checked.files.published.bounds.get(asked.config.k)
    rows = compare(
        measure, schedule, rivals_of(found.bounds, paper, schedule, asked.draws), asked.tasks, count("rivals")
    )
    if asked.plot:
        write_files({asked.plot: _plot(asked, found, rows, trials)})
    return Result(found, spend(schedule, found.bounds), rows, studio.backbone.model_id)


def _search(asked: Calibrating, measure: Measure, trials: Trials, tries: OnTrial) -> Calibration:
    if asked.tokens is None:
        found = calibrate(measure, asked.config, trials, tries)
    else:
        cost = partial(spend, asked.checked.schedule)
        found = calibrate_within(measure, asked.config, asked.tokens, cost, trials, tries)
    tries(len(trials.values), len(trials.values))  # fewer than announced, most times
    return found


def _plot(asked: Calibrating, found: Calibration, rows: Sequence[Row], trials: Trials) -> bytes:
    schedule, k = asked.checked.schedule, asked.config.k
    points = [(spend(schedule, bounds), value) for bounds, value in trials.values.items() if len(bounds) == k]
    marks = {row.name: (row.tokens, row.value.value) for row in rows[:1]}
    marks |= {"found": (spend(schedule, found.bounds), found.value)}
    lines = {"all at the finest": found.reference}
    if asked.tokens is None:
        lines["tolerance"] = found.reference - asked.config.tolerance
    title = f"moss{k}, {len(asked.prompts)} prompts: {asked.metric}"
    return scatter(title, "refine tokens a picture", points, marks, lines)


def _about(asked: Calibrating, backbone: Backbone) -> dict[str, Any]:
    """All that decides the metric's values but the bounds."""
    recipe = recipe_of(asked.checked, backbone, asked.checked.request.seed)
    digest = hashlib.sha256("\n".join(asked.prompts).encode()).hexdigest()
    metric = {"metric": asked.metric, "prompts": len(asked.prompts), "prompts_sha256": digest}
    return metric | {name: value for name, value in recipe.items() if name not in _NOT_MEASURED}


def facts(asked: Calibrating, result: Result) -> dict[str, Any]:
    """What --json prints."""
    config = {
        "metric": asked.metric, "prompts": len(asked.prompts), **asdict(asked.config), "tokens": asked.tokens
    }
    found = {**asdict(result.found), "tokens": result.tokens}
    return {"setting": config, "found": found, "equal_tokens": [asdict(row) for row in result.rows]}


def record(asked: Calibrating, result: Result) -> dict[str, Any]:
    """Everything about a search, ready to be stored."""
    return {
        "format": FORMAT,
        "command": asked.command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(asked.checked.device), "versions": versions(),
        "model": Path(asked.checked.files.name).name, "model_id": result.model_id,
        "plot": asked.plot and asked.plot.name,
        **facts(asked, result),
    }
