"""Calibrate: the search finds a known optimum, nothing is measured twice, and bounds are compared at equal
tokens.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comfy_moss import cli
from comfy_moss.benchmarks import calibrate as calibrating
from comfy_moss.benchmarks import commands, metrics, pages, search
from comfy_moss.benchmarks.plots import scatter
from comfy_moss.benchmarks.search import (
    Bounds,
    CalibrationConfig,
    Metric,
    Trials,
    calibrate,
    calibrate_within,
)
from comfy_moss.model.backbone import PAPER_BOUNDS
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.dispatch import RefinePass
from comfy_moss.pipeline.plan import generate, parse_method

SCHEDULE = make_schedule(1.0, "0.25M")


def needs(*least: float) -> Metric:
    """1 where every bound is at least that, less where one is below: what a picture that needs just those
    bounds would give.
    """
    return lambda bounds: 1 - sum(max(0.0, low - b) for low, b in zip(least, bounds, strict=True)) / 100


# --- the search ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", search.ORDERS)
@pytest.mark.parametrize(
    "least", [(50.0, 15.0, 5.0), (100.0, 100.0, 100.0), (0.0, 0.0, 0.0), (70.0, 70.0, 10.0), (35.0,)]
)
def test_the_bounds_that_are_needed_are_found(least: Bounds, order: str) -> None:
    found = calibrate(needs(*least), CalibrationConfig(len(least), tolerance=0, order=order))
    assert found.bounds == least and found.value == found.reference == 1


@pytest.mark.parametrize("order", search.ORDERS)
def test_the_result_is_within_the_tolerance_and_no_bound_can_fall_further(order: str) -> None:
    def metric(bounds: Bounds) -> float:
        return sum(math.sqrt(b) for b in bounds)  # falls slowly at first, fast near 0

    config = CalibrationConfig(3, tolerance=6, order=order)
    found = calibrate(metric, config)
    assert found.reference == 30 and found.reference - found.value <= 6
    last = 0 if order == "finest" else 2  # the bound that was searched last had all of the tolerance
    lower = tuple(b - config.step * (n == last) for n, b in enumerate(found.bounds))
    assert found.reference - metric(lower) > 6


@pytest.mark.parametrize("order", search.ORDERS)
def test_a_later_bound_may_use_what_the_earlier_ones_left(order: str) -> None:
    """Of a tolerance of 20 the first of two bounds takes half, though it could take all."""
    found = calibrate(lambda bounds: sum(bounds), CalibrationConfig(2, tolerance=20, order=order))
    assert found.bounds == ((90, 90) if order == "finest" else (95, 85))


@pytest.mark.parametrize("order", search.ORDERS)
def test_every_pair_of_bounds_that_is_tried_is_valid(order: str) -> None:
    for seed in range(20):
        chance, tried = np.random.default_rng(seed), []

        def metric(bounds: Bounds, chance: np.random.Generator = chance, tried: list = tried) -> float:
            RefinePass.of_last(bounds)  # refuses bounds that rise
            tried.append(bounds)
            return float(chance.random())

        config = CalibrationConfig(4, tolerance=0.4, step=7, order=order)
        found = calibrate(metric, config)
        assert len(tried) == len(set(tried)) <= config.trials
        assert found.value >= found.reference - config.tolerance  # however the metric wavers


def test_bounds_lie_on_the_grid() -> None:
    assert CalibrationConfig(2, 0, step=40).grid == (0, 40, 80, 100)
    assert CalibrationConfig(2, 0, step=25).grid == (0, 25, 50, 75, 100)
    found = calibrate(needs(33, 12), CalibrationConfig(2, 0, step=10))
    assert found.bounds == (40, 20)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"k": 0}, "k = 0"), ({"tolerance": -1}, "-1"), ({"tolerance": math.nan}, "nan"),
        ({"step": 0}, "got 0"),
        ({"order": "up"}, "up"),
    ],
)
def test_impossible_searches_are_refused(wrong: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CalibrationConfig(**{"k": 2, "tolerance": 0.1, **wrong})


@pytest.mark.parametrize("order", search.ORDERS)
def test_a_budget_is_kept_and_used(order: str) -> None:
    def metric(bounds: Bounds) -> float:
        return sum(math.sqrt(b) for b in bounds)

    config, trials, values = CalibrationConfig(3, 0, step=1, order=order), Trials(), []
    for tokens in (0, 100, 300, 800, 2000):
        found = calibrate_within(
            metric, config, tokens, lambda b: sum(RefinePass.of_last(b).counts(SCHEDULE)), trials
        )
        spent = sum(RefinePass.of_last(found.bounds).counts(SCHEDULE))
        assert 0.7 * min(tokens, 1024) <= spent <= tokens and found.value == metric(found.bounds)
        assert found.value == max(
            v for b, v in trials.values.items() if sum(RefinePass.of_last(b).counts(SCHEDULE)) <= tokens
        )
        values.append(found.value)
    assert values == sorted(values) and values[0] == 0 and values[-1] == 30


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_one_clear_error(value: float, tmp_path: Path) -> None:
    trials = Trials.open(tmp_path / "state.json", {})
    with pytest.raises(ValueError, match=rf"returned {value} for the bounds \[100, 50\]"):
        calibrate(lambda b: value if b[1] < 100 else 1.0, CalibrationConfig(2, 0.1), trials)
    assert Trials.open(tmp_path / "state.json", {}).values == {(100.0, 100.0): 1.0}


# --- the state ----------------------------------------------------------------------------------------------


def test_going_on_after_an_interruption_measures_nothing_twice(tmp_path: Path) -> None:
    path, config, calls = tmp_path / "state.json", CalibrationConfig(3, 0), []

    def metric(bounds: Bounds) -> float:
        if len(calls) == 6:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append(bounds)
        return needs(50, 15, 5)(bounds)

    with pytest.raises(KeyboardInterrupt):
        calibrate(metric, config, Trials.open(path, {"model": "a"}))
    kept = json.loads(path.read_text())["trials"]
    assert [tuple(trial["bounds"]) for trial in kept] == calls[:6]
    assert list(tmp_path.iterdir()) == [path]

    found = calibrate(metric, config, Trials.open(path, {"model": "a"}))
    measured = [bounds for bounds in calls if bounds]
    assert found.bounds == (50, 15, 5) and len(measured) == len(set(measured))

    before = len(calls)
    assert calibrate(metric, config, Trials.open(path, {"model": "a"})) == found and len(calls) == before
    calibrate(metric, CalibrationConfig(3, 0.5), Trials.open(path, {"model": "a"}))
    assert len(calls) > before and not set(calls[before:]) & set(measured)  # another tolerance, the same file


def test_the_progress_never_exceeds_what_was_announced() -> None:
    told: list[tuple[int, int]] = []
    config = CalibrationConfig(5, 0.2)
    calibrate(needs(90, 50, 15, 10, 5), config, on_trial=lambda *of: told.append(of))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert {most for _, most in told} == {config.trials} and len(told) <= config.trials


def test_a_state_of_another_metric_is_refused(tmp_path: Path) -> None:
    Trials.open(tmp_path / "state.json", {"metric": "psnr", "seed": 1})
    with pytest.raises(ValueError, match="measured with seed 1, not 2"):
        Trials.open(tmp_path / "state.json", {"metric": "psnr", "seed": 2})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 0, "about": {}, "trials": []}'])
def test_a_file_that_is_no_state_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no state of a calibration"):
        Trials.open(path, {})
    assert path.read_text() == text


# --- at equal tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds", [(50.0, 15.0, 5.0), (95.0, 90.0, 3.0), (100.0, 100.0, 100.0), (2.0, 1.0, 0.0)]
)
@pytest.mark.parametrize("tokens", [60, 250, 900])
def test_bounds_are_brought_to_a_number_of_tokens(bounds: Bounds, tokens: int) -> None:
    scaled = calibrating.at_tokens(bounds, SCHEDULE, tokens)
    RefinePass.of_last(scaled)
    spent = sum(RefinePass.of_last(scaled).counts(SCHEDULE))
    limit = sum(RefinePass.of_last(tuple(100.0 * (b > 0) for b in bounds)).counts(SCHEDULE))
    assert min(tokens, limit) - 8 <= spent <= tokens
    factors = {round(s / b, 6) for s, b in zip(scaled, bounds, strict=True) if b and s < 100}
    assert len(factors) <= 1


def test_nothing_refined_stays_nothing() -> None:
    assert calibrating.at_tokens((0.0, 0.0), SCHEDULE, 500) == (0, 0)


def test_random_rivals_spend_the_same_and_differ_from_each_other() -> None:
    rivals = calibrating.random_bounds(4, SCHEDULE, 300, 5)
    assert len(set(rivals)) == 5 and rivals == calibrating.random_bounds(4, SCHEDULE, 300, 5)
    assert all(292 <= sum(RefinePass.of_last(bounds).counts(SCHEDULE)) <= 300 for bounds in rivals)


def test_the_gain_is_paired_by_picture() -> None:
    """Pictures differ widely; the second bounds are better by 1 on each, which only a paired interval can
    tell.
    """
    luck = np.random.default_rng(0).normal(0, 50, 24)

    class Made:
        def values(self, bounds: Bounds) -> np.ndarray:
            return luck + (bounds[0] == 60)

    rivals = {"paper": (50.0, 25.0), "found": (60.0, 20.0)}
    rows = calibrating.compare(Made(), SCHEDULE, rivals, ["counting"] * 24, lambda *_: None)
    assert rows[0].gain is None and rows[0].tokens == sum(RefinePass.of_last((50, 25)).counts(SCHEDULE))
    assert (rows[1].gain.value, rows[1].gain.low, rows[1].gain.high) == pytest.approx((1, 1, 1))
    assert rows[1].value.high - rows[1].value.low > 20


def test_a_search_is_compared_with_the_paper_where_it_has_bounds() -> None:
    rivals = calibrating.rivals_of((90.0, 60.0, 20.0), PAPER_BOUNDS[3], SCHEDULE, 1)
    assert list(rivals) == ["paper", "found", "random 1", "draft"] and rivals["paper"] == PAPER_BOUNDS[3]
    assert list(calibrating.rivals_of((40.0,), None, SCHEDULE, 0)) == ["found", "draft"]


# --- on a model ---------------------------------------------------------------------------------------------

Line = Callable[..., list[str]]


@pytest.fixture
def line(model_dir: Path) -> Line:
    """options -> the command line that calibrates the tiny model on three prompts."""
    shortest = [
        "calibrate", "--model", str(model_dir), "--pixels", "0.06M", "--prompts", "3", "--step", "50",
        "--batch", "2",
    ]
    return lambda *more: [*shortest, "--precision", "fp32", "--compare", "1", *more]


def _prepared(line: Line, *more: str) -> calibrating.Measure:
    asked = calibrating.check(cli._parser().parse_args(line(*more)))
    studio = calibrating.load(asked.checked, asked.prompts)
    return calibrating.prepare(asked, studio, asked.quality, lambda *_: None)


def test_a_try_gives_what_generate_would_draw(line: Line) -> None:
    prepared = _prepared(line, "--k", "2", "--metric", "psnr", "--seed", "5")
    assert [batch.draft.recipe.seeds for batch in prepared.batches] == [(5, 6), (7,)]
    batch, bounds = prepared.batches[1], (60.0, 30.0)
    picture = generate(prepared.backbone, batch.draft.recipe, parse_method("moss", bounds))
    drawn = prepared.draw(batch, bounds)
    assert torch.equal(drawn.totals[-1], picture.total.cpu())
    dense = generate(prepared.backbone, batch.draft.recipe, parse_method("dense"))
    assert torch.allclose(batch.dense.totals[-1], dense.total.cpu(), atol=1e-5)


def test_a_try_draws_no_draft(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepared(line, "--k", "3", "--metric", "latent")
    monkeypatch.setattr(calibrating, "draw_draft", lambda *_: pytest.fail("a draft was drawn"))
    monkeypatch.setattr("comfy_moss.pipeline.refine.rebuild", lambda *_: pytest.fail("a cache was rebuilt"))
    first = prepared((50.0, 25.0, 10.0))
    assert prepared((100.0, 100.0, 100.0)) != first and prepared((50.0, 25.0, 10.0)) == first


def test_caches_without_room_are_rebuilt_with_the_same_result(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _prepared(line, "--k", "2", "--metric", "latent").values((50.0, 25.0))
    monkeypatch.setattr(calibrating, "KEPT", 0)
    prepared = _prepared(line, "--k", "2", "--metric", "latent")
    assert all(batch.cache is None for batch in prepared.batches)
    assert prepared.values((50.0, 25.0)) == pytest.approx(kept, abs=1e-3)


def test_one_scale_redrawn_whole_is_dense_by_every_likeness(line: Line) -> None:
    for metric, best in (("latent", metrics.ALIKE), ("psnr", metrics.ALIKE), ("ssim", 1), ("texture", 1)):
        values = _prepared(line, "--k", "1", "--metric", metric).values((100.0,))
        assert values == pytest.approx([best] * 3), metric


def test_the_command_finds_compares_plots_and_goes_on(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, plot = tmp_path / "state.json", tmp_path / "plot.png"
    argv = line("--k", "2", "--metric", "latent", "--state", str(state), "--plot", str(plot))
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert [row.split()[0] for row in out.splitlines()[4:]] == ["paper", "found", "random", "draft"]
    assert "tries" in err and "drafts" in err
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    monkeypatch.setattr(Trials, "save", lambda _self: pytest.fail("something was measured again"))
    assert cli.main([*argv, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert f"--bounds {','.join(f'{b:g}' for b in facts['found']['bounds'])}" in out
    paper = RefinePass.of_last((50, 25)).counts(make_schedule(1.0, "0.06M"))
    assert {row["tokens"] for row in facts["equal_tokens"][:1]} == {sum(paper)}


def test_what_was_found_is_stored_and_becomes_a_part_of_the_page(
    line: Line, tmp_path: Path, model_dir: Path
) -> None:
    argv = line("--k", "2", "--metric", "latent", "--tokens", "paper", "--plot", str(tmp_path / "plot.png"))
    assert cli.main([*argv, "--save", str(tmp_path)]) == 0
    (found,) = pages.stored("calibrate", tmp_path)
    assert (found["model"], found["setting"]["k"]) == (model_dir.name, 2)
    assert "--k 2 --metric latent --tokens paper" in found["command"]
    text = pages.calibrations([found])
    assert found["command"] in text and "](images/plot.png)" in text
    best = next(row for row in found["equal_tokens"] if row["name"] == "found")
    assert f"| found | {', '.join(f'{b:.3g}' for b in best['bounds'])} | {best['tokens']} | latent |" in text
    assert pages.calibrations([]) == ""
    (tmp_path / f"calibration-{model_dir.name}-2.json").write_text("{}")
    with pytest.raises(ValueError, match="is no result that this version's calibrate stored"):
        pages.stored("calibrate", tmp_path)


def test_the_papers_tokens_can_be_the_budget(line: Line, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(line("--k", "2", "--metric", "latent", "--tokens", "paper", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    paper = facts["equal_tokens"][0]
    assert paper["name"] == "paper" and 0 < facts["found"]["tokens"] <= paper["tokens"]
    assert cli.main(line("--k", "1", "--metric", "latent", "--tokens", "paper")) == 2
    assert "no bounds are printed" in capsys.readouterr().err


def test_prompts_of_ones_own_can_be_used(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\n\na dog\n")
    assert (
        cli.main(
            line("--k", "2", "--metric", "texture", "--prompt-file", str(tmp_path / "prompts.txt"), "--json")
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["setting"]["prompts"] == 2


def test_metrics_on_the_command_line_are_those_there_are() -> None:
    assert set(metrics.METRICS) == set(commands.METRICS) and search.ORDERS == commands.ORDERS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--k", "0"], "at least 1 scale"),
        (["--k", "7"], "leave no scale for the draft"),
        (["--tolerance", "-1"], "tolerance must be 0 or more"),
        (["--step", "0"], "step must be a percentage"),
        (["--prompts", "0"], "--prompts must be 1 or more"),
        (["--metric", "speed"], "invalid choice: 'speed'"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt: No such file"),
        (["--prompt-file", "nowhere.txt", "--metric", "overall"], "judges its own prompts only"),
        (["--plot", "plot.jpg"], "PNG"),
        (["--state", "."], "is a folder"),
        (["--method", "moss2"], "unrecognized arguments"),
        (["--tokens", "few"], "'few' is no number of tokens"),
        (["--tokens", "99", "--tolerance", "1"], "cannot be had together"),
    ],
)
def test_wrong_orders_are_refused_before_the_model_is_loaded(
    line: Line, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.setattr(calibrating, "load", lambda *_: pytest.fail("the model was loaded"))
    assert cli.main(line(*more)) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


# --- the plot -----------------------------------------------------------------------------------------------


def test_the_plot_shows_more_tokens_further_right_and_better_ones_higher() -> None:
    orange = np.array((213, 94, 0))

    def place(mark: tuple[float, float]) -> tuple[float, float]:
        picture = np.asarray(
            Image.open(io.BytesIO(scatter("", "", [(0, 0), (1000, 1)], {" ": mark}, {"limit": 0.5})))
        )
        rows, columns = np.nonzero((picture[..., :3] == orange).all(-1))
        return columns.mean(), rows.mean()

    (left, low), (right, high) = place((200, 0.2)), place((800, 0.9))
    assert right > left + 200 and high < low - 100
