"""Budgets: the best plan found within a share of dense's work or a time, and what other models are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import tiny_backbone

from comfy_moss import cli, request
from comfy_moss.images import read_recipe
from comfy_moss.model.found import FoundPlan, found_plans, with_found
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline import budget
from comfy_moss.pipeline.budget import Offer, elsewhere, offers, plan_for, plan_within
from comfy_moss.pipeline.plan import Plan, parse_plan

TEXTS = {
    "plan30": ("draft-2 cfg 3; -1@30 unguided", 0.9), "plan20": ("draft-3 cfg 3; -1@45 unguided", 0.8),
    "plan10": ("draft-4 cfg 2; -4@50; -1@20 unguided", 0.5), "plan5": ("draft-5", 0.6),
}
KNOWN = tuple(
    FoundPlan(name, text, "nano", 10, 0.1, score, score - 0.05, score + 0.05)
    for name, (text, score) in TEXTS.items()
)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "found_plans", lambda: KNOWN)


def test_the_best_plan_within_the_budget_is_chosen(known: None) -> None:
    backbone, schedule = tiny_backbone(), make_schedule(1.0, "0.25M")
    offered = offers(backbone, schedule, True, "nano")
    assert [offer.work for offer in offered] == sorted(offer.work for offer in offered) and len(offered) == 4
    for offer in offered:
        best = max((one for one in offered if one.work <= offer.work), key=lambda one: one.found.score)
        assert plan_for(offer.work, offered) == best
    assert plan_for(1.0, offered).found.name == "plan30"


@pytest.mark.parametrize(
    ("share", "message"), [(0, "try 0.2"), (1.5, "try 0.2"), (0.001, "the cheapest takes 0.0")]
)
def test_a_budget_that_nothing_fits_is_one_sentence(known: None, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_for(share, offers(tiny_backbone(), make_schedule(1.0, "0.25M"), True, "nano"))


def test_another_model_is_offered_them_with_its_own_guidance_and_told_so(known: None) -> None:
    schedule = make_schedule(1.0, "1M")
    offer = plan_for(0.5, offers(tiny_backbone(), schedule, True, "2b"))
    assert not offer.own and "found on nano with 10 scales, not on this model" in offer.note
    assert str(offer.plan) == "draft-2; -1@30 unguided"
    assert offer.work != KNOWN[0].work  # counted on its own schedule
    own = offers(tiny_backbone(), make_schedule(1.0, "0.25M"), True, "nano")
    assert "scored 0.90" in plan_for(0.5, own).note


@pytest.mark.parametrize("text", [
    "draft-3 cfg 3; -2@50 cfg 2; -1@20 unguided", "draft-3; -2@50; -1@20 unguided",
])
def test_strengths_are_another_models_own_and_passes_without_guidance_stay_so(text: str) -> None:
    assert str(elsewhere(parse_plan(text))) == "draft-3; -2@50; -1@20 unguided"


def test_a_draft_without_guidance_has_it_elsewhere() -> None:
    """Nano scores as well without; Infinity and HART are published with it."""
    assert str(elsewhere(parse_plan("draft-3 cfg 1; -2@50; -1@20"))) == "draft-3; -2@50; -1@20"


def test_a_schedule_too_short_for_a_plan_is_not_offered_it(known: None) -> None:
    short = make_schedule(1.0, "0.06M")
    assert all(offer.plan.k < len(short) for offer in offers(tiny_backbone(), short, True, "tiny"))


# --- seconds ------------------------------------------------------------------------------------------------


def _offers() -> list[Offer]:
    works = (0.05, 0.1, 0.2, 0.3)
    return [
        Offer(parse_plan(one.text), work, one, True) for one, work in zip(KNOWN[::-1], works, strict=True)
    ]


def test_seconds_choose_the_best_that_is_fast_enough_and_measure_each_plan_once(tmp_path: Path) -> None:
    measured: list[str] = []
    takes = {
        text: seconds
        for (text, _), seconds in zip(list(TEXTS.values())[::-1], (1.0, 2.0, 3.0, 9.0), strict=True)
    }

    def measure(plan: Plan) -> float:
        measured.append(str(plan))
        return takes[str(plan)]

    found = [
        plan_within(s, _offers(), measure, tmp_path / "a" / "times.json", "here").found.name
        for s in (1, 2.5, 3)
    ]
    assert found == ["plan5", "plan5", "plan20"]
    assert len(measured) == len(set(measured)) == 4
    plan_within(3, _offers(), measure, tmp_path / "a" / "times.json", "elsewhere")
    assert len(measured) == 8


def test_too_few_seconds_are_one_sentence_and_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text("[")
    with pytest.raises(ValueError, match="takes 0.5 s or less here; the cheapest takes 2 s"):
        plan_within(0.5, _offers(), lambda _plan: 2.0, tmp_path / "times.json", "here")
    assert len(json.loads((tmp_path / "times.json").read_text())) == 1


# --- the command line ---------------------------------------------------------------------------------------


def test_generate_takes_a_budget_and_says_which_plan_it_is(
    known: None,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    line = [
        "generate",
        "a red star",
        "--model",
        str(model_dir),
        "--pixels",
        "0.06M",
        "-o",
        str(tmp_path / "a.png"),
    ]
    assert cli.main([*line, "--budget", "0.9"]) == 0
    assert "found on nano with 10 scales, not on this model" in capsys.readouterr().err
    assert read_recipe(tmp_path / "a.png")["plan"] == "draft-2; -1@30 unguided"
    assert cli.main([*line, "--seconds", "1000"]) == 0
    assert len(json.loads(request.times_file().read_text())) == 4 and request.times_file().is_relative_to(
        tmp_path
    )
    capsys.readouterr()
    assert cli.main([*line, "--budget", "0.001"]) == 2
    assert "no plan is known" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--budget", "0.2", "--plan", "dense"],
        ["--budget", "0.2", "--seconds", "2"],
        ["--seconds", "2", "--skip", "2"],
        ["--seconds", "0"],
        ["--budget", "2"],
    ],
)
def test_a_budget_beside_a_method_or_out_of_range_is_refused_before_the_model_is_loaded(
    more: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "load", lambda *_: pytest.fail("the model was loaded"))
    assert cli.main(["generate", "a red star", *more]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_evaluate_takes_budgets_of_the_models_own_plans(capsys: pytest.CaptureFixture) -> None:
    line = ["evaluate", "--per-task", "1", "--methods", "dense", "--budget", "0.0001"]
    assert cli.main(line) == 2
    assert "no plan was found for nano on 10 scales at 0.0001" in capsys.readouterr().err


# --- what was found -----------------------------------------------------------------------------------------


def test_plans_of_a_search_take_the_place_of_older_ones_of_that_model_and_schedule(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"

    def store(model: str, scales: int, name: str) -> None:
        score = {"value": 0.5, "low": 0.4, "high": 0.6}
        plans = {name: {"plan": "draft-2", "work": 0.2, "score": score}}
        parts = ("model_id", "cfg", "command", "date", "hardware", "versions", "setting")
        record = dict.fromkeys(parts) | {"model": model, "scales": scales, "plans": plans, "tried": ["much"]}
        path.write_bytes(with_found(record, path))

    for model, scales, name in (("nano", 10, "plan20"), ("nano", 13, "plan20"), ("nano", 10, "plan30")):
        store(model, scales, name)
    assert [(one.scales, one.name) for one in found_plans(path)] == [(13, "plan20"), (10, "plan30")]
    assert "much" not in path.read_text() and found_plans(tmp_path / "none.json") == ()


def test_the_stored_plans_are_those_of_the_stored_searches_and_tables() -> None:
    from comfy_moss.benchmarks import pages

    searches = pages.stored("plans")
    results = [one for one in pages.stored("evaluate") if one.get("name") == pages.TABLE]
    tables = [pages.measured_plans(one, searches) for one in results]
    measured = {(record["model"], record["scales"]) for record in tables}
    searches = [record for record in searches if (record["model"], record["scales"]) not in measured]
    stored = [
        (name, one["plan"], record["model"], record["scales"])
        for record in (*searches, *tables)
        for name, one in record["plans"].items()
    ]
    assert sorted((one.name, one.text, one.model, one.scales) for one in found_plans()) == sorted(stored)
    for _, text, *_ in stored:
        assert str(parse_plan(text)) == text
