"""Planner: the space of plans, a search that goes on where it stopped, and the choice on other prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import optuna
import pytest

from comfy_moss import cli
from comfy_moss.benchmarks import calibrate, pages, planner, suite
from comfy_moss.benchmarks.analysis import Interval
from comfy_moss.benchmarks.calibrate import Chosen, named, within
from comfy_moss.benchmarks.planner import (
    Search,
    Tried,
    candidates,
    find,
    front,
    open_study,
    parameters,
    suggest,
)
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.plan import Plan, parse_plan

SCHEDULE = make_schedule(1.0, "0.25M")
SCALES = len(SCHEDULE)


class _Given:
    """A trial of given parameters; what is not given is drawn at random."""

    def __init__(self, known: dict, seed: int = 0) -> None:
        self.known, self.chance = known, random.Random(seed)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        value = self.known.setdefault(name, self.chance.randrange(low, high + 1, step))
        assert low <= value <= high
        return value

    def suggest_categorical(self, name: str, choices: tuple) -> str | float:
        value = self.known.setdefault(name, self.chance.choice(choices))
        assert value in choices
        return value


# --- the space ----------------------------------------------------------------------------------------------


def test_every_plan_of_the_space_can_be_drawn() -> None:
    kinds = set()
    for seed in range(400):
        plan = suggest(_Given({}, seed), SCALES)
        plan.on(SCHEDULE)  # refuses what cannot be
        assert parse_plan(str(plan)) == plan and 0 < sum(plan.tokens_per_scale(SCHEDULE))
        kinds.add((len(plan.passes), len({s for step in plan.passes for s in step.scales}) < plan.k))
    assert {(0, False), (1, True), (2, True), (3, False)} <= kinds


def test_guidance_that_is_off_stays_off() -> None:
    given = {
        "left": 2,
        "guidance": 3.0,
        "place -2": "begins",
        "bound -2": 50,
        "place -1": "begins",
        "bound -1": 20,
    }
    plan = suggest(_Given(given | {"guidance 0": 1.0, "guidance 1": 4.0}), SCALES)
    assert str(plan) == "draft-2 cfg 3; -2@50 unguided; -1@20 unguided"


def test_bounds_fall_within_a_pass_and_are_free_between_passes() -> None:
    given = {"left": 2, "guidance": 3.0, "place -2": "begins", "bound -2": 20, "bound -1": 80}
    given |= {"guidance 0": 3.0, "guidance 1": 3.0}
    joined, apart = (suggest(_Given(given | {"place -1": place}), SCALES) for place in ("joins", "begins"))
    assert str(joined) == "draft-2 cfg 3; -2@20 -1@20" and str(apart) == "draft-2 cfg 3; -2@20; -1@80"


@pytest.mark.parametrize("text", [*planner.RIVALS, *planner.STARTS])
def test_the_known_plans_are_points_of_the_space(text: str) -> None:
    plan = parse_plan(text)
    given = parameters(plan, 3.0)
    found = suggest(_Given(dict(given)), SCALES)
    assert (found.draft, found.guidance) == (plan.draft, plan.guidance or 3.0)
    assert [(p.scales, p.bounds, p.guided) for p in found.passes] == [
        (p.scales, p.bounds, p.guided) for p in plan.passes
    ]


# --- the search ---------------------------------------------------------------------------------------------


def _work(plan: Plan) -> float:
    return sum(plan.tokens_per_scale(SCHEDULE)) / SCHEDULE.tokens(0, SCALES)


def _score(plan: Plan) -> float:
    """What a model would give that needs 300 tokens of the last scale, and guidance 3 before it."""
    last = plan.tokens_per_scale(SCHEDULE)[-1]
    return min(last, 300) / 300 - 0.1 * abs((plan.guidance or 0) - 3)


def _search(folder: Path | None, trials: int, stop: int | None = None) -> list[Tried]:
    calls = 0

    def score(plan: Plan, _beat: float) -> float:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return _score(plan)

    search = Search(trials, most=0.6)
    study = open_study(folder and folder / "study.log", SCHEDULE, search)
    return find(study, search, SCHEDULE, _work, score, lambda *_: None)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_search_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = _search(None, 40)
    for stop in (3, 35):
        with pytest.raises(KeyboardInterrupt):
            _search(tmp_path / "parts", 40, stop)
    parts = _search(tmp_path / "parts", 40)
    assert [(str(t.plan), t.work, t.score) for t in parts] == [(str(t.plan), t.work, t.score) for t in whole]
    assert len({str(t.plan) for t in whole}) > 30 and str(whole[0].plan) == "dense cfg 1.5"
    assert all(t.work <= 0.6 for t in whole if str(t.plan) not in _known())


def _known() -> set[str]:
    return {
        str(suggest(_Given(parameters(parse_plan(text), cfg)), SCALES))
        for text in (*planner.RIVALS, *planner.STARTS)
        for cfg in (1, 1.5, 3)
    }


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_sampler_finds_better_plans_than_chance() -> None:
    found = [t.score for t in _search(None, 80) if str(t.plan) not in _known()]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    chance = [_score(plan) for _ in range(100) if _work(plan := suggest(study.ask(), SCALES)) <= 0.6]
    assert len(chance) > 20 and np.mean(found[-20:]) > np.mean(chance) + 0.1


def test_a_search_begins_with_the_rivals_at_every_strength_that_is_known() -> None:
    study = open_study(None, SCHEDULE, Search(9, strength=2.6, own=7.5))
    strengths = {trial.system_attrs["fixed_params"]["guidance"] for trial in study.trials}
    assert strengths == {1.0, 3.0, 4.0} and set(planner.STRENGTHS) > strengths


# --- the front and the choice -------------------------------------------------------------------------------


def _tried(text: str, work: float, score: float) -> Tried:
    return Tried(parse_plan(text), work, score)


def test_the_front_holds_what_nothing_beats_in_both_and_each_plan_once() -> None:
    found = [_tried("draft-3", 0.1, 0.5), _tried("draft-2", 0.2, 0.49), _tried("draft-1", 0.4, 0.6)]
    assert [str(t.plan) for t in front([*found, found[0]])] == ["draft-3", "draft-1"]
    assert [str(t.plan) for t in front(found, 0.02)] == ["draft-3", "draft-2", "draft-1"]


def test_the_rivals_go_to_the_choice_at_their_best_strength_however_costly() -> None:
    rivals = [
        _tried("dense cfg 1.5", 1, 0.7),
        _tried("dense cfg 3", 1, 0.8),
        _tried("draft-1 cfg 3", 0.46, 0.1),
    ]
    found = [*rivals, _tried("draft-3 cfg 2; -1@20", 0.15, 0.6), _tried("draft-3; -1@95", 0.5, 0.9)]
    assert [str(t.plan) for t in candidates(found, 0.3)] == [
        "draft-3 cfg 2; -1@20",
        "draft-1 cfg 3",
        "dense cfg 3",
    ]


def test_a_budget_gets_the_best_that_fits_and_of_equal_ones_the_cheapest() -> None:
    def one(plan: str, work: float, score: float) -> Chosen:
        return Chosen(plan, work, 0.0, 0.0, Interval(score, score, score), 1.0)

    chosen = [one("a", 0.1, 0.5), one("b", 0.15, 0.7), one("c", 0.2, 0.7), one("d", 0.3, 0.9)]
    assert [within(chosen, budget).plan for budget in (0.1, 0.2, 0.25, 1.0)] == ["a", "b", "b", "d"]
    assert within(chosen, 0.05) is None
    assert {name: found.plan for name, found in named(chosen, (0.3, 0.125, 0.05)).items()} == {
        "plan30": "d",
        "plan12.5": "a",
    }


def test_prompts_of_search_choice_and_table_have_none_in_common() -> None:
    argv = ["calibrate", "--search", "plans", "--prompts", "60", "--choice", "96", "--device", "cpu"]
    sets = calibrate.check(cli._parser().parse_args(argv)).sets
    table = {case.prompt for case in suite.prompts(calibrate.TABLE, calibrate.TABLE_SEED)}
    search, choice = (set(sets[name].texts) for name in ("search", "choice"))
    assert len(sets["search"].texts) == 60 and len(sets["choice"].texts) == 96
    assert not search & choice and not search & table and not choice & table
    assert {*range(sets["search"].first, 60)}.isdisjoint(
        range(sets["choice"].first, sets["choice"].first + 96)
    )


# --- on a model ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_search_and_choice_on_a_model_are_two_commands_and_make_named_plans(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = f"--model {model_dir} --pixels 0.06M --precision fp32 --prompts 4 --choice 5 --trials 25 --batch 4"
    line = ["calibrate", *tiny.split(), "--state", str(tmp_path / "state"), "--budgets", "0.9,0.3"]
    assert cli.main([*line, "--search", "plans", "--plot", str(tmp_path / "plot.png")]) == 0
    assert (
        "share of dense's work" in capsys.readouterr().out and (tmp_path / "plot.png").stat().st_size > 5000
    )
    assert cli.main([*line, "--search", "choice", "--save", str(tmp_path)]) == 0
    assert "| plan90" in capsys.readouterr().out
    (stored,) = pages.stored("plans", tmp_path)
    assert len(stored["tried"]) == 25 and set(stored["plans"]) <= {"plan90", "plan30"}
    assert (
        stored["plans"]["plan90"]["work"] <= 0.9
        and stored["scales"] == 7
        and stored["command"].count("--budgets 0.9,0.3")
    )
    monkeypatch.setattr(calibrate, "generate", lambda *_: pytest.fail("a plan was drawn again"))
    assert cli.main([*line, "--search", "choice", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["plans"] == stored["plans"] and facts["setting"]["choice prompts"] == 5


def test_a_state_of_other_settings_is_refused(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny = f"--model {model_dir} --pixels 0.06M --precision fp32 --prompts 4 --choice 5 --trials 1"
    line = ["calibrate", *tiny.split(), "--state", str(tmp_path)]
    assert cli.main(line) == 0
    assert cli.main([*line, "--cfg", "2"]) == 2
    assert "holds another calibration, of cfg" in capsys.readouterr().err
