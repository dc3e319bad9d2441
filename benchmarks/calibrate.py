"""Plans for a budget, or bounds of MoSs-k, found for a model by a metric: `python -m comfy_moss calibrate`.

`--search plans` searches the space of plans (see planner.py), `--search choice` chooses among what it found
with other prompts beside, `--search topdown` is the paper's way to bounds (see topdown.py).  Whatever is
tried is drawn in batches, each a file of the state's folder, so that a search that was stopped goes on and
nothing is drawn twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from comfy_moss.images import check_writable, write_files
from comfy_moss.model.backbone import Backbone
from comfy_moss.pipeline.plan import Plan, generate, parse_plan, share_of_dense
from comfy_moss.request import Checked, Request, recipe_of
from comfy_moss.request import check as check_request

from . import planner, topdown
from .analysis import Interval, mean, weights
from .draw import as_seen, draw_together
from .machine import hardware, versions
from .metrics import METRICS, Drawn, Pair, Quality
from .plots import scatter
from .studio import Studio, check_least, claim, load, read_note
from .suite import TASKS, Case, in_turn, prompts
from .topdown import Bounds, Found, Measured, Row, TopDown, compare, rivals_of, spend
from .workers import Batches, Workers

FORMAT = 1  # of the stored files; raised when a key changes its meaning
PAPER = "paper"  # the budget of the bounds printed for this family of models
SEARCHES = ("plans", "choice", "topdown")
# Seeds of the three sets of prompts; the first two leave out the prompts of those behind them.
SEARCH_SEED, CHOICE_SEED, TABLE_SEED = 4242, 777, 31
CHOICE = 16  # prompts a task that are set apart for the choice; --choice takes the first of them
TABLE = 40  # prompts a task of the final table: evaluate --per-task 40 --seed 31
CHOICE_FIRST = 10_000  # seed of the choice's first picture, behind that of the request
OPTIONS = (
    "search", "k", "metric", "tokens", "tolerance", "step", "order", "trials", "choice", "budgets", "prompts",
    "compare", "seed", "cfg", "pixels", "model",
)
USUAL = {"plans": ("faithful", 60), "choice": ("faithful", 60), "topdown": ("psnr", 24)}  # metric, prompts
Count = Callable[[str], Callable[[int, int], None]]  # what is counted -> told (done, in all)
_NOT_MEASURED = (
    "prompt",
    "method",
    "plan",
    "bounds",
    "skip",
    "device",
    "torch",
)  # of a recipe: decides no value
HOPELESS = 0.12  # below what is known at that cost: a plan is not measured to its end

# --- the request -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Prompts of one set, a picture each.

    Attributes:
        cases: what the prompts ask for; () where only the user knows.
        first: seed of the first picture; the next ones count up.
    """

    texts: tuple[str, ...]
    cases: tuple[Case, ...]
    first: int

    @property
    def tasks(self) -> list[str]:
        """Of every picture, for the bootstrap."""
        return [case.task for case in self.cases] or ["all"] * len(self.texts)


@dataclass(frozen=True)
class Calibrating:
    """A checked calibration.

    Attributes:
        checked: the model, and what all pictures have in common.
        kind: one of SEARCHES.
        sets: prompts of the search, and of the choice.
        topdown, planner: how either search goes.
        tokens: of topdown: refine tokens a picture that may be spent; None = the tolerance decides.
        draws: of topdown: random rivals in the comparison.
        choice: prompts of the choice, the first ones of that set.
        budgets: of the choice: shares of dense's work, most first.
        batch: pictures drawn together.
        state: folder; None = nothing is kept.
        command: what to type for the same again.
    """

    checked: Checked
    kind: str
    metric: str
    sets: Mapping[str, Prompts]
    topdown: TopDown
    planner: planner.Search
    tokens: int | None
    draws: int
    choice: int
    budgets: tuple[float, ...]
    batch: int
    workers: Workers
    state: Path | None
    plot: Path | None
    command: str

    @property
    def quality(self) -> Quality:
        return METRICS[self.metric]


def check(args: argparse.Namespace) -> Calibrating:
    """Refuse what is wrong with the options.

    Raises:
        OSError: the prompts cannot be read.
        ValueError: a value out of range, a file that cannot be written, or a metric that cannot judge these
            prompts.
    """
    args = _filled(args)
    check_writable(args.save and args.save / "calibration.json")
    check_least(prompts=(args.prompts, 1), choice=(args.choice, 1), batch=(args.batch, 1))
    check_least(compare=(args.compare, 0), trials=(args.trials, 1))
    if args.choice > CHOICE * len(TASKS):
        raise ValueError(f"--choice takes up to {CHOICE * len(TASKS)} prompts, got {args.choice}")
    _check_together(args)
    tolerance = METRICS[args.metric].tolerance if args.tolerance is None else args.tolerance
    config = TopDown(args.k, tolerance, args.step, args.order)
    sets = _sets(args)
    drawing = {"prompt": sets["search"].texts[0], "batch": len(sets["search"].texts), "output": args.plot}
    checked = check_request(Request.of(args, **drawing, method="moss", bounds=[100.0] * args.k))
    tokens = _paper_tokens(checked, config.k) if args.tokens == PAPER else args.tokens
    strength = checked.guidance.cfg if isinstance(checked.guidance.cfg, (int, float)) else 1.5
    most, own = max(args.budgets) * 1.25, checked.files.cfg
    search = planner.Search(args.trials, most, strength, own, args.seed)
    batches = -(-args.prompts // args.batch)
    return Calibrating(
        checked,
        args.search,
        args.metric,
        sets,
        config,
        search,
        tokens,
        args.compare,
        args.choice,
        args.budgets,
        args.batch,
        Workers.of(args, checked.device, batches),
        args.state,
        args.plot,
        _command(args),
    )


def _filled(args: argparse.Namespace) -> argparse.Namespace:
    """What the kind of search decides; --k asks for the paper's."""
    kind = args.search or ("topdown" if args.k is not None else "plans")
    metric, count = USUAL[kind]
    metric = "psnr" if args.prompt_file else metric
    usual = {"search": kind, "metric": metric, "prompts": count, "k": 4}
    return argparse.Namespace(**vars(args) | {k: v for k, v in usual.items() if getattr(args, k) is None})


def _check_together(args: argparse.Namespace) -> None:
    if args.tokens is not None and args.tolerance is not None:
        raise ValueError("--tokens and --tolerance cannot be had together; leave one of them out")
    if args.prompt_file and METRICS[args.metric].needs_cases:
        raise ValueError(
            f"the metric {args.metric} judges its own prompts only; leave --prompt-file out, "
            "or choose another"
        )
    if args.prompt_file and args.search == "choice":
        raise ValueError("a choice is made on prompts of the shapes world; leave --prompt-file out")
    if args.state and args.state.is_file():
        raise ValueError(f"{args.state} is a file; name a folder, in which every try is kept")
    if args.search == "choice" and not args.state:
        raise ValueError("a choice is made among what a search found; name its folder with --state")
    if args.cluster and not args.state:
        raise ValueError(
            "a cluster's machines need a folder that all of them can write; name it with --state"
        )
    if not all(0 < budget <= 1 for budget in args.budgets):
        raise ValueError(f"budgets are shares of dense's work between 0 and 1, got {list(args.budgets)}")


def _sets(args: argparse.Namespace) -> dict[str, Prompts]:
    """The prompts; those of a search over plans, of its choice and of the final table have none in common."""
    if args.prompt_file:
        return {"search": Prompts(_read_prompts(args.prompt_file), (), args.seed)}
    count = -(-args.prompts // len(TASKS))
    if args.search == "topdown":
        return {"search": _set(in_turn(prompts(count, SEARCH_SEED))[: args.prompts], args.seed)}
    taken = {case.prompt for case in prompts(TABLE, TABLE_SEED)}
    pool = in_turn(prompts(CHOICE, CHOICE_SEED, taken))
    taken |= {case.prompt for case in pool}
    search = in_turn(prompts(count, SEARCH_SEED, taken))[: args.prompts]
    return {"search": _set(search, args.seed), "choice": _set(pool, args.seed + CHOICE_FIRST)}


def _set(cases: tuple[Case, ...], first: int) -> Prompts:
    return Prompts(tuple(case.prompt for case in cases), cases, first)


def _command(args: argparse.Namespace) -> str:
    given = {name: getattr(args, name) for name in OPTIONS}
    given["budgets"] = ",".join(f"{b:g}" for b in args.budgets)
    skipped = {"topdown": ("choice", "trials", "budgets")}.get(
        args.search, ("k", "tokens", "tolerance", "step", "order", "compare")
    )
    shown = [f"--{n} {v}" for n, v in given.items() if v is not None and n not in skipped]
    return " ".join(["python -m comfy_moss calibrate", *shown])


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


# --- measuring a plan -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Try:
    """A batch of some prompts drawn by a plan."""

    prompts: str  # name of the set
    plan: str
    start: int


@dataclass
class Bench:
    """What a process needs to draw tries: the model, and dense's pictures where the metric looks at them."""

    asked: Calibrating

    @cached_property
    def studio(self) -> Studio:
        return load(self.asked.checked, [text for part in self.asked.sets.values() for text in part.texts])

    @cached_property
    def dense(self) -> dict[tuple[str, int], Drawn]:
        """By set and start of a batch, as far as they were needed."""
        return {}

    def drawn(self, plan: Plan, batch: Try) -> dict[str, Drawn]:
        """Pictures by plan: this one's and, where it is dense at a strength, those of the rivals from its
        drafts."""
        part, stop = self.asked.sets[batch.prompts], batch.start + self.asked.batch
        seeds = range(part.first + batch.start, part.first + min(stop, len(part.texts)))
        recipe = self.studio.recipe(part.texts[batch.start : stop], seeds)
        if not plan.k and plan.guidance is not None:
            rivals = planner.rivals(plan.guidance, len(recipe.schedule))
            return draw_together(self.studio.backbone, recipe, {str(plan): plan} | rivals)
        picture = generate(self.studio.backbone, recipe, plan)
        return {str(plan): Drawn(as_seen(picture.image), (picture.total.cpu(),), picture.cost)}

    def dense_of(self, batch: Try) -> Drawn:
        key = batch.prompts, batch.start
        if key not in self.dense:
            self.dense[key] = self.drawn(Plan(0), batch)[str(Plan(0))]
        return self.dense[key]


def measure(bench: Bench, batch: Try) -> dict[Path, bytes]:
    """The file of a try: one value a picture, and what drawing a picture of its batch took.  With dense come
    the rivals of its strength.
    """
    quality, part = bench.asked.quality, bench.asked.sets[batch.prompts]
    cases = part.cases[batch.start : batch.start + bench.asked.batch]
    files = {}
    for plan, drawn in bench.drawn(parse_plan(batch.plan), batch).items():
        dense = bench.dense_of(batch) if quality.compares else drawn
        values = quality.values(Pair(drawn, dense, cases)).double().tolist()
        seconds = drawn.cost.total_seconds - drawn.cost.seconds["decode"]
        told = {"plan": plan, "values": values, "draw_s": round(seconds / len(values), 5)}
        path = try_path(bench.asked.state, replace(batch, plan=plan))
        if not path.exists():  # else drawn alone before, and its time stays
            files[path] = json.dumps(told).encode()
    return files


def try_path(folder: Path, batch: Try) -> Path:
    digest = hashlib.sha256(batch.plan.encode()).hexdigest()[:16]
    return folder / "tries" / f"{batch.prompts}-{digest}-{batch.start:05d}.json"


@dataclass
class Measure:
    """Plans -> values, drawn where they are not known."""

    asked: Calibrating
    backbone: Backbone
    batches: Batches

    def rows(self, plan: Plan, name: str = "search", count: int | None = None) -> list[dict[str, Any]]:
        """What is known of a plan's batches on a set of prompts, by `measure`.

        Args:
            count: of prompts, the first ones, in whole batches; None = all.

        Raises:
            ValueError: a file is damaged.
        """
        count, size = count or len(self.asked.sets[name].texts), self.asked.batch
        tries = [Try(name, str(plan), start) for start in range(0, count, size)]
        files = {one: try_path(self.asked.state, one) for one in tries}
        self.batches.run(files)
        rows = [read_note(path) for path in files.values()]
        for row, path in zip(rows, files.values(), strict=True):
            if not row or row.get("plan") != str(plan):
                raise ValueError(f"{path} holds no try of this version; delete it, and it is drawn again")
        return rows

    def values(self, plan: Plan, name: str = "search", count: int | None = None) -> np.ndarray:
        """The metric of every picture, (P,) float64, or of the first ones."""
        return np.concatenate([row["values"] for row in self.rows(plan, name, count)])[:count]

    def score(self, plan: Plan, beat: float = -math.inf) -> float:
        """The mean of the metric; of the first half of the prompts alone where that is far below `beat`."""
        half = self.values(plan, count=math.ceil(len(self.asked.sets["search"].texts) / 2)).mean()
        return float(half if half < beat - HOPELESS else self.values(plan).mean())

    def seconds(self, plan: Plan, name: str, count: int) -> float:
        """Median over batches of the drawing time a picture, without the decoder."""
        return float(np.median([row["draw_s"] for row in self.rows(plan, name, count)]))

    def work(self, plan: Plan) -> float:
        """Share of dense's multiply-adds."""
        made, backbone = self.asked.checked, self.backbone
        guided = made.guidance.active(len(made.schedule))
        return share_of_dense(plan, made.schedule, backbone.work, guided, backbone.depth)


def _about(asked: Calibrating, backbone: Backbone) -> dict[str, Any]:
    """All that decides the metric's values but the plan."""
    recipe = recipe_of(asked.checked, backbone, asked.checked.request.seed)
    texts = {name: "\n".join(part.texts).encode() for name, part in asked.sets.items()}
    about = {"metric": asked.metric, "batch": asked.batch}
    about |= {f"{name} prompts": hashlib.sha256(text).hexdigest()[:16] for name, text in texts.items()}
    return about | {name: value for name, value in recipe.items() if name not in _NOT_MEASURED}


# --- plans --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """A plan on the prompts of the choice, and on all.

    Attributes:
        work: multiply-adds as a share of dense's.
        found: its score on the prompts of the search.
        chosen: the same on those of the choice.
        score: the metric's mean over both, with its 95 % interval: what decides.
        seconds: drawing time a picture, without the decoder.
    """

    plan: str
    work: float
    found: float
    chosen: float
    score: Interval
    seconds: float


def choose(asked: Calibrating, known: Measure, found: Sequence[planner.Tried], count: Count) -> list[Chosen]:
    """The candidates of a search on other prompts, cheapest first."""
    candidates, told = planner.candidates(found, max(asked.budgets)), count("candidates")
    size, chosen = asked.choice, []
    weight = weights(asked.sets["search"].tasks + asked.sets["choice"].tasks[:size])
    for done, one in enumerate(candidates[::-1]):  # dense first, which brings the rivals of its strength
        told(done, len(candidates))
        sets = known.values(one.plan), known.values(one.plan, "choice", size)
        found, own = (round(float(values.mean()), 5) for values in sets)
        score, seconds = mean(np.concatenate(sets), weight), known.seconds(one.plan, "choice", size)
        chosen.append(Chosen(str(one.plan), round(one.work, 5), found, own, score, seconds))
    told(len(candidates), len(candidates))
    return chosen[::-1]


def within(chosen: Sequence[Chosen], budget: float) -> Chosen | None:
    """The best that takes at most this share of dense's work; of equal ones the cheapest."""
    fitting = [one for one in chosen if one.work <= budget]
    return max(fitting, key=lambda one: (one.score.value, -one.work), default=None)


def named(chosen: Sequence[Chosen], budgets: Sequence[float]) -> dict[str, Chosen]:
    """By name, plan20 = what was chosen for 20 % of dense's work."""
    found = {f"plan{100 * budget:g}": within(chosen, budget) for budget in budgets}
    return {name: one for name, one in found.items() if one}


# --- the whole ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came out; of topdown the next four, of plans and choice the last three.

    Attributes:
        tokens: that the found bounds spend a picture.
        rows: the comparison at equal tokens, the yardstick first.
        measured: by bounds, all that topdown tried.
        tried: all plans that were tried.
        chosen: the candidates of a choice, cheapest first.
        study: Optuna's.
        model_id: of the weights.
    """

    model_id: str
    found: Found | None = None
    tokens: int = 0
    rows: Sequence[Row] = ()
    measured: Mapping[Bounds, float] | None = None
    tried: Sequence[planner.Tried] = ()
    chosen: Sequence[Chosen] = ()
    study: optuna.Study | None = None


def run(asked: Calibrating, count: Count) -> Result:
    """Draw, search, choose or compare, and write the plot.

    Args:
        count: tells what is being done and how far it is.

    Raises:
        ValueError: the state is another metric's, or the model's files are damaged.
        OSError: a file cannot be written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        asked = replace(asked, state=asked.state or Path(temporary))
        bench = Bench(asked)
        backbone = bench.studio.backbone
        claim(asked.state, _about(asked, backbone), {"command": asked.command}, "calibration")
        with Batches(asked.workers, asked, Bench, measure, "tries") as batches:
            batches.loaded = bench
            known = Measure(asked, backbone, batches)
            result = _topdown(asked, known) if asked.kind == "topdown" else _plans(asked, known, count)
    if asked.plot:
        write_files({asked.plot: plot(asked, result)})
    return result


def _plans(asked: Calibrating, known: Measure, count: Count) -> Result:
    schedule, told = asked.checked.schedule, count("plans")
    study = planner.open_study(asked.state / "study.log", schedule, asked.planner)
    tried = planner.find(study, asked.planner, schedule, known.work, known.score, told)
    chosen = choose(asked, known, tried, count) if asked.kind == "choice" else ()
    return Result(known.backbone.model_id, tried=tried, chosen=chosen, study=study)


def _topdown(asked: Calibrating, known: Measure) -> Result:
    schedule, config = asked.checked.schedule, asked.topdown

    def values(bounds: Bounds) -> np.ndarray:
        return known.values(Plan.moss(bounds))

    def cost(bounds: Bounds) -> int:
        return spend(schedule, bounds)

    tried = Measured(lambda bounds: float(values(bounds).mean()))
    if asked.tokens is None:
        found = topdown.search(tried, config)
    else:
        found = topdown.search_within(tried, config, asked.tokens, cost)
    paper = asked.checked.files.published.bounds.get(config.k)
    rivals = rivals_of(found.bounds, paper, schedule, asked.draws)
    rows = compare(values, schedule, rivals, asked.sets["search"].tasks)
    return Result(known.backbone.model_id, found, cost(found.bounds), rows, dict(tried))


def plot(asked: Calibrating, result: Result) -> bytes:
    """Everything that was tried, as a PNG file."""
    return (_plot_bounds if result.found else _plot_plans)(asked, result)


def _plot_bounds(asked: Calibrating, result: Result) -> bytes:
    schedule, found = asked.checked.schedule, result.found
    points = [(spend(schedule, bounds), value) for bounds, value in result.measured.items()]
    marks = {row.name: (row.tokens, row.value.value) for row in result.rows[:1]}
    marks |= {"found": (result.tokens, found.value)}
    lines = {"all at the finest": found.reference}
    if asked.tokens is None:
        lines["tolerance"] = found.reference - asked.topdown.tolerance
    title = f"moss{asked.topdown.k}, {len(asked.sets['search'].texts)} prompts: {asked.metric}"
    return scatter(title, "refine tokens a picture", points, marks, lines)


def _plot_plans(asked: Calibrating, result: Result) -> bytes:
    chosen = named(result.chosen, asked.budgets)
    names = {one.plan: ", ".join(n for n, own in chosen.items() if own == one) for one in chosen.values()}
    marks = {names[one.plan]: (one.work, one.found) for one in chosen.values()}
    metric = f"{asked.metric}, {len(asked.sets['search'].texts)} prompts"
    return planner.plot(result.study, metric, marks)


def facts(asked: Calibrating, result: Result) -> dict[str, Any]:
    """What --json prints."""
    setting = {"metric": asked.metric, "prompts": len(asked.sets["search"].texts), "search": asked.kind}
    if result.found:
        setting |= {**asdict(asked.topdown), "tokens": asked.tokens}
        found = {**asdict(result.found), "tokens": result.tokens}
        return {"setting": setting, "found": found, "equal_tokens": [asdict(row) for row in result.rows]}
    setting |= {"trials": asked.planner.trials, "seed": asked.planner.seed, "most": asked.planner.most}
    choice = {"choice prompts": asked.choice} if result.chosen else {}
    best = {str(one.plan) for one in planner.front(result.tried)}
    tried = [
        {
            "plan": str(one.plan),
            "work": round(one.work, 5),
            "score": round(one.score, 5),
            "front": str(one.plan) in best,
        }
        for one in result.tried
    ]
    plans = {name: asdict(one) for name, one in named(result.chosen, asked.budgets).items()}
    return {
        "setting": setting | choice,
        "tried": tried,
        "chosen": [asdict(one) for one in result.chosen],
        "plans": plans,
    }


def record(asked: Calibrating, result: Result) -> dict[str, Any]:
    """Everything about a search, ready to be stored."""
    made = asked.checked
    return {
        "format": FORMAT,
        "command": asked.command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(made.device), "versions": versions(),
        "model": Path(made.files.name).name, "model_id": result.model_id, "scales": len(made.schedule),
        "pixels": made.pixels, "cfg": made.guidance.asked, "plot": asked.plot and asked.plot.name,
        **facts(asked, result),
    }
