"""Planner: search the space of plans for the best one at every cost.

Optuna's NSGA-II proposes plans (drafted scales, passes, scales left out, bounds, guidance of the draft and
of each pass), each is measured on the prompts of the search, and those that nothing beats in both cost and
score are measured on a second set of prompts too; both sets choose.  Cost is multiply-adds in the blocks as
a share of dense's, which is the same everywhere; seconds are measured beside it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Protocol

import matplotlib
import optuna
from matplotlib import pyplot
from optuna.trial import TrialState

from comfy_moss.model.schedule import Schedule
from comfy_moss.pipeline.dispatch import RefinePass
from comfy_moss.pipeline.plan import Plan, parse_plan

STUDY = "plans"
LEFT = 6  # scales that a plan may leave to its passes, or out, at most
PASSES = 3
STRENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0)  # of guidance; 1 = none
PARENTS = 12  # plans that new ones are crossed from
PLACES = (
    "out",
    "begins",
    "joins",
)  # of a scale: drawn by no pass, by a pass of its own, by that of the one before
# What is known goes first.  Rivals are measured at several strengths, so that they get their best; the search
# begins near them, near plans that did well on other schedules, and near the first finds of this one.
RIVALS = (
    "dense",
    "draft-1",
    "draft-2",
    "draft-3",
    "draft-2; -2@40 -1@30",
    "draft-3; -3@30 -2@20 -1@20",
    "draft-4; -4@80 -3@70 -2@30 -1@10",
)
STARTS = (
    "draft-2; -1@60 unguided",
    "draft-3; -1@45 unguided",
    "draft-3; -1@100 unguided",
    "draft-3; -2@60; -1@45 unguided",
    "draft-4; -1@45 unguided",
    "draft-4; -4@70; -1@45 unguided",
    "draft-3 cfg 1; -3@50; -1@35",
    "draft-4 cfg 1; -4@60; -2@50; -1@40",
    "draft-5 cfg 1; -5@90 -4@90; -2@100; -1@40",
    "draft-5 cfg 1; -5@100 -4@100; -2@100; -1@65",
    "draft-5 cfg 1; -5@80; -3@50; -1@35",
    "draft-6 cfg 1; -6@20 -5@20 -4@20; -3@55; -1@30",
    "draft-6 cfg 1; -6@20 -5@20 -4@20; -3@40; -1@25",
    "draft-6 cfg 1; -6@80 -5@60; -3@60; -1@35",
    "draft-6 cfg 1; -6@60 -5@40; -3@40; -1@25",
    "draft-6 cfg 1; -5@60; -3@50; -1@40",
    "draft-6 cfg 1; -6@100 -5@100; -3@70; -1@45",
    "draft-5 cfg 1; -5@70; -3@40; -1@25",
    "draft-5 cfg 1; -5@100; -3@60; -1@45",
    "draft-5 cfg 1; -5@100 -4@100; -2@70; -1@45",
    "draft-5 cfg 1; -5@100; -3@80; -1@60",
    "draft-4 cfg 1; -4@80; -2@60; -1@50",
    "draft-4 cfg 1; -3@40; -1@35",
    "draft-4 cfg 1; -4@100 -3@100; -1@70",
    "draft-6 cfg 1; -5@50; -3@40; -1@30",
    "draft-5 cfg 1; -5@60; -3@35; -1@20",
    "draft-6 cfg 1; -5@70; -3@60; -1@45",
    "draft-5 cfg 1; -5@80; -3@45; -1@40",
    "draft-5 cfg 1; -4@60; -2@50; -1@40",
    "draft-5 cfg 1; -5@80 -4@60; -2@50; -1@35",
    "draft-4 cfg 1; -4@60; -2@50; -1@30",
    "draft-5 cfg 1; -5@90 -4@90; -2@60; -1@50",
    "draft-4 cfg 1; -4@80; -2@80; -1@50",
    "draft-6 cfg 1; -6@80 -5@60 -4@50; -2@40; -1@30",
    "draft-5 cfg 1; -5@80 -4@50; -2@50; -1@35",
    "draft-5 cfg 1; -5@90 -4@90; -2@70; -1@45",
)
UNGUIDED, STRONG = 1.0, 3.0  # strengths beside the model's own
NEAR = 0.01  # below the front's score, a plan still goes to the choice


class Suggesting(Protocol):
    """A trial, running or kept."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[str | float]) -> str | float: ...


def suggest(trial: Suggesting, scales: int) -> Plan:
    """The plan that a trial stands for, on a schedule of that many scales.

    Every trial says something of every scale and pass, also of those that its plan has no use for: so any two
    can be crossed.
    """
    most = min(LEFT, scales - 1)
    left = trial.suggest_int("left", 0, most)
    draft = float(trial.suggest_categorical("guidance", STRENGTHS))
    passes: list[tuple[list[int], list[float]]] = []
    for scale in range(-most, 0):
        place = trial.suggest_categorical(f"place {scale}", PLACES)
        bound = float(trial.suggest_int(f"bound {scale}", 5, 100, step=5))
        if place == "out" or -scale > left:
            continue
        if not passes or (place == "begins" and len(passes) < PASSES):
            passes.append(([], []))
        drawn, bounds = passes[-1]
        drawn.append(scale)
        bounds.append(min([bound, *bounds]))
    strengths = [float(trial.suggest_categorical(f"guidance {n}", STRENGTHS)) for n in range(PASSES)]
    return _plan(-left, draft, passes, strengths[: len(passes)])


def _plan(
    left: int, draft: float, passes: Sequence[tuple[list[int], list[float]]], strengths: Sequence[float]
) -> Plan:
    """With guidance off for good once it is off, and said only where a pass differs from the draft."""
    steps, off = [], draft == 1
    for (scales, bounds), strength in zip(passes, strengths, strict=True):
        off = off or strength == 1
        own = 1.0 if off else strength
        steps.append(RefinePass(tuple(scales), tuple(bounds), guidance=None if own == draft else own))
    return Plan(left, tuple(steps), draft)


def parameters(plan: Plan, strength: float) -> dict[str, int | float | str]:
    """What `suggest` reads a plan from; it must count its scales from the end.

    Args:
        strength: of its draft, where it says none.
    """
    draft = strength if plan.guidance is None else plan.guidance
    found: dict[str, int | float | str] = {"left": plan.k, "guidance": draft}
    for scale in range(-LEFT, 0):
        found |= {f"place {scale}": "out", f"bound {scale}": 50}
    found |= {f"guidance {n}": draft for n in range(PASSES)}
    for n, step in enumerate(plan.passes):
        found[f"guidance {n}"] = draft if step.guidance is None else step.guidance
        for scale, bound in zip(step.scales, step.bounds, strict=True):
            found |= {
                f"place {scale}": "begins" if scale == step.scales[0] else "joins",
                f"bound {scale}": int(bound),
            }
    return found


@dataclass(frozen=True)
class Tried:
    """A plan that was measured.

    Attributes:
        work: multiply-adds as a share of dense's.
        score: mean of the metric over the prompts, higher is better.
    """

    plan: Plan
    work: float
    score: float


@dataclass(frozen=True)
class Search:
    """How plans are searched.

    Attributes:
        trials: plans to measure.
        most: of dense's work; costlier plans are not measured, but for the known ones.
        strength: guidance of the recipe; own: the model's.  Rivals are known at the nearest of STRENGTHS to
            both, and without and at a strong one.
        seed: of the sampler.
    """

    trials: int
    most: float = 0.4
    strength: float = 1.5
    own: float = 1.5
    seed: int = 0


def open_study(path: Path | None, schedule: Schedule, search: Search) -> optuna.Study:
    """Go on with a study, or begin one with the known plans."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage() if path is None else _journal(path)
    study = optuna.create_study(
        storage=storage, study_name=STUDY, directions=["minimize", "maximize"], load_if_exists=True
    )
    if not study.trials:
        known = (*RIVALS, *STARTS)
        first: list[dict[str, int | float | str]] = []
        asked, own = (
            min(STRENGTHS, key=lambda one: abs(one - s)) for s in (search.strength, search.own)
        )
        for texts, strength in ((known, asked), (RIVALS, own), (RIVALS, STRONG), (known, UNGUIDED)):
            plans = [plan for plan in map(parse_plan, texts) if plan.k <= min(LEFT, len(schedule) - 1)]
            first += [parameters(plan, strength) for plan in plans]
        for n, one in enumerate(first):
            if one not in first[:n]:  # some strengths are one, and some plans have their own
                study.enqueue_trial(one, {"known": True})
    return study


def rivals(strength: float, scales: int) -> dict[str, Plan]:
    """The rivals of dense at a strength, by the text that a search knows them by."""
    known = [replace(parse_plan(text), guidance=strength) for text in RIVALS]
    return {str(plan): plan for plan in known if 0 < plan.k <= min(LEFT, scales - 1)}


def _journal(path: Path) -> optuna.storages.JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def find(
    study: optuna.Study, search: Search, schedule: Schedule, work: Callable[[Plan], float],
    score: Callable[[Plan, float], float], on_trial: Callable[[int, int], None],
) -> list[Tried]:
    """Measure plans until there are `search.trials`; returns all that were.

    The sampler is seeded anew for every trial, so that a search that was stopped goes on as if it had not
    been.

    Args:
        score: plan, and the best score that is known at its cost or below -> its own.
        on_trial: told how many of how many are done; may raise to cancel.
    """
    unfinished = [
        trial for trial in study.trials if trial.state == TrialState.RUNNING
    ]  # stopped while it was measured
    while (done := len(known := tried(study, len(schedule)))) < search.trials:
        on_trial(done, search.trials)
        sampler = optuna.samplers.NSGAIISampler(
            population_size=PARENTS, seed=search.seed + len(study.trials)
        )
        study.sampler = sampler  # crosses the best plans, and changes a parameter here and there
        trial = unfinished.pop() if unfinished else study.ask()
        plan = suggest(trial, len(schedule))
        cost, first = work(plan), trial.user_attrs.get("known", False)
        if isinstance(trial, optuna.Trial):
            trial.set_constraint("work", cost - search.most)
        if not first and (cost > search.most or any(one.plan == plan for one in known)):
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            beat = max((one.score for one in known if one.work <= cost), default=-math.inf)
            study.tell(trial.number, [cost, score(plan, -math.inf if first else beat)])
    on_trial(search.trials, search.trials)
    return tried(study, len(schedule))


def plot(study: optuna.Study, metric: str, marks: Mapping[str, tuple[float, float]]) -> bytes:
    """Optuna's plot of the front, with named points, as a PNG file."""
    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({"figure.figsize": (9.6, 5.6), "figure.autolayout": True}),
    ):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        names = ["multiply-adds as a share of dense's", metric]
        axes = optuna.visualization.matplotlib.plot_pareto_front(study, target_names=names)
    for name, place in marks.items():
        axes.scatter(*place, s=70, color="#009e73", zorder=3)
        axes.annotate(name, place, (-7, 5), textcoords="offset points", ha="right", color="#00674b")
    axes.set_title(f"{len(tried(study, LEFT + 1))} plans", loc="left")
    buffer = BytesIO()
    axes.figure.savefig(buffer, format="png", metadata={"Software": None})
    pyplot.close(axes.figure)
    return buffer.getvalue()


def tried(study: optuna.Study, scales: int) -> list[Tried]:
    """All that was measured, in that order."""
    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    return [Tried(suggest(trial, scales), *trial.values) for trial in done]


def candidates(found: Sequence[Tried], most: float) -> list[Tried]:
    """What a choice should look at again, cheapest first: all near the front, and every rival at its best
    strength, however costly.
    """
    near = [one for one in front(found, NEAR) if one.work <= most]
    kinds = [str(replace(parse_plan(text), guidance=None)) for text in RIVALS]
    rivals: dict[str, Tried] = {}
    for one in found:
        kind = str(replace(one.plan, guidance=None))
        if kind in kinds and (kind not in rivals or one.score > rivals[kind].score):
            rivals[kind] = one
    return sorted(
        {str(one.plan): one for one in (*near, *rivals.values())}.values(), key=lambda one: one.work
    )


def front(found: Sequence[Tried], near: float = 0.0) -> list[Tried]:
    """What no other beats in both work and score by more than `near` of score, cheapest first; each plan
    once.
    """
    best, kept = float("-inf"), {}
    for one in sorted(found, key=lambda t: (t.work, -t.score)):
        if one.score > best - near:
            kept.setdefault(str(one.plan), one)
        best = max(best, one.score)
    return list(kept.values())
