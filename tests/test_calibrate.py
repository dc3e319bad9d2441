"""Calibrate: searches find a known optimum, measure nothing twice, and compare bounds at equal tokens."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfy_moss import benchmarks, cli
from comfy_moss.benchmarks import calibrate as calibrating
from comfy_moss.benchmarks import commands, metrics, pages, planner, topdown
from comfy_moss.benchmarks.calibrate import Measure
from comfy_moss.benchmarks.plots import scatter
from comfy_moss.benchmarks.topdown import Bounds, Measured, Metric, TopDown, search, search_within
from comfy_moss.benchmarks.workers import Batches
from comfy_moss.model.backbone import PAPER_BOUNDS
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.dispatch import RefinePass
from comfy_moss.pipeline.plan import Plan, generate

SCHEDULE = make_schedule(1.0, "0.25M")


def needs(*least: float) -> Metric:
    """1 where every bound is at least that, less where one is below: what a picture that needs just those
    bounds would give."""
    return lambda bounds: 1 - sum(max(0.0, low - b) for low, b in zip(least, bounds, strict=True)) / 100


# --- the search ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", topdown.ORDERS)
@pytest.mark.parametrize(
    "least", [(50.0, 15.0, 5.0), (100.0, 100.0, 100.0), (0.0, 0.0, 0.0), (70.0, 70.0, 10.0), (35.0,)]
)
def test_the_bounds_that_are_needed_are_found(least: Bounds, order: str) -> None:
    found = search(Measured(needs(*least)), TopDown(len(least), tolerance=0, order=order))
    assert found.bounds == least and found.value == found.reference == 1


@pytest.mark.parametrize("order", topdown.ORDERS)
def test_the_result_is_within_the_tolerance_and_no_bound_can_fall_further(order: str) -> None:
    def metric(bounds: Bounds) -> float:
        return sum(math.sqrt(b) for b in bounds)  # falls slowly at first, fast near 0

    config = TopDown(3, tolerance=6, order=order)
    found = search(Measured(metric), config)
    assert found.reference == 30 and found.reference - found.value <= 6
    last = 0 if order == "finest" else 2  # the bound that was searched last had all of the tolerance
    lower = tuple(b - config.step * (n == last) for n, b in enumerate(found.bounds))
    assert found.reference - metric(lower) > 6


@pytest.mark.parametrize("order", topdown.ORDERS)
def test_a_later_bound_may_use_what_the_earlier_ones_left(order: str) -> None:
    """Of a tolerance of 20 the first of two bounds takes half, though it could take all."""
    found = search(Measured(sum), TopDown(2, tolerance=20, order=order))
    assert found.bounds == ((90, 90) if order == "finest" else (95, 85))


@pytest.mark.parametrize("order", topdown.ORDERS)
def test_every_pair_of_bounds_that_is_tried_is_valid(order: str) -> None:
    for seed in range(20):
        chance, tried = np.random.default_rng(seed), []

        def metric(bounds: Bounds, chance: np.random.Generator = chance, tried: list = tried) -> float:
            RefinePass.of_last(bounds)  # refuses bounds that rise
            tried.append(bounds)
            return float(chance.random())

        config = TopDown(4, tolerance=0.4, step=7, order=order)
        found = search(Measured(metric), config)
        assert len(tried) == len(set(tried)) <= config.trials
        assert found.value >= found.reference - config.tolerance  # however the metric wavers


def test_bounds_lie_on_the_grid() -> None:
    assert TopDown(2, 0, step=40).grid == (0, 40, 80, 100)
    assert TopDown(2, 0, step=25).grid == (0, 25, 50, 75, 100)
    found = search(Measured(needs(33, 12)), TopDown(2, 0, step=10))
    assert found.bounds == (40, 20)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"k": 0}, "k = 0"),
        ({"tolerance": -1}, "-1"),
        ({"tolerance": math.nan}, "nan"),
        ({"step": 0}, "got 0"),
        ({"order": "up"}, "up"),
    ],
)
def test_impossible_searches_are_refused(wrong: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        TopDown(**{"k": 2, "tolerance": 0.1, **wrong})


@pytest.mark.parametrize("order", topdown.ORDERS)
def test_a_budget_is_kept_and_used(order: str) -> None:
    def metric(bounds: Bounds) -> float:
        return sum(math.sqrt(b) for b in bounds)

    config, trials, values = TopDown(3, 0, step=1, order=order), Measured(metric), []
    for tokens in (0, 100, 300, 800, 2000):
        found = search_within(trials, config, tokens, lambda b: sum(RefinePass.of_last(b).counts(SCHEDULE)))
        spent = sum(RefinePass.of_last(found.bounds).counts(SCHEDULE))
        assert 0.7 * min(tokens, 1024) <= spent <= tokens and found.value == metric(found.bounds)
        assert found.value == max(
            v for b, v in trials.items() if sum(RefinePass.of_last(b).counts(SCHEDULE)) <= tokens
        )
        values.append(found.value)
    assert values == sorted(values) and values[0] == 0 and values[-1] == 30


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_one_clear_error(value: float) -> None:
    measured = Measured(lambda b: value if b[1] < 100 else 1.0)
    with pytest.raises(ValueError, match=rf"returned {value} for the bounds \[100, 50\]"):
        search(measured, TopDown(2, 0.1))
    assert measured == {(100.0, 100.0): 1.0}


def test_nothing_is_measured_twice() -> None:
    calls: list[Bounds] = []
    measured = Measured(lambda b: calls.append(b) or needs(50, 15, 5)(b))
    assert search(measured, TopDown(3, 0)).bounds == (50, 15, 5) and len(calls) == len(set(calls))
    before = len(calls)
    assert search(measured, TopDown(3, 0)).bounds == (50, 15, 5) and len(calls) == before
    search(measured, TopDown(3, 0.5))
    assert len(calls) > before and not set(calls[before:]) & set(
        calls[:before]
    )  # another tolerance, the same values


# --- at equal tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds", [(50.0, 15.0, 5.0), (95.0, 90.0, 3.0), (100.0, 100.0, 100.0), (2.0, 1.0, 0.0)]
)
@pytest.mark.parametrize("tokens", [60, 250, 900])
def test_bounds_are_brought_to_a_number_of_tokens(bounds: Bounds, tokens: int) -> None:
    scaled = topdown.at_tokens(bounds, SCHEDULE, tokens)
    RefinePass.of_last(scaled)
    spent = sum(RefinePass.of_last(scaled).counts(SCHEDULE))
    limit = sum(RefinePass.of_last(tuple(100.0 * (b > 0) for b in bounds)).counts(SCHEDULE))
    assert min(tokens, limit) - 8 <= spent <= tokens
    factors = {round(s / b, 6) for s, b in zip(scaled, bounds, strict=True) if b and s < 100}
    assert len(factors) <= 1


def test_nothing_refined_stays_nothing() -> None:
    assert topdown.at_tokens((0.0, 0.0), SCHEDULE, 500) == (0, 0)


def test_random_rivals_spend_the_same_and_differ_from_each_other() -> None:
    rivals = topdown.random_bounds(4, SCHEDULE, 300, 5)
    assert len(set(rivals)) == 5 and rivals == topdown.random_bounds(4, SCHEDULE, 300, 5)
    assert all(292 <= sum(RefinePass.of_last(bounds).counts(SCHEDULE)) <= 300 for bounds in rivals)


def test_the_gain_is_paired_by_picture() -> None:
    """Pictures differ widely; the second bounds are better by 1 on each: only a paired interval tells."""
    luck = np.random.default_rng(0).normal(0, 50, 24)

    def values(bounds: Bounds) -> np.ndarray:
        return luck + (bounds[0] == 60)

    rivals = {"paper": (50.0, 25.0), "found": (60.0, 20.0)}
    rows = topdown.compare(values, SCHEDULE, rivals, ["counting"] * 24)
    assert rows[0].gain is None and rows[0].tokens == sum(RefinePass.of_last((50, 25)).counts(SCHEDULE))
    assert (rows[1].gain.value, rows[1].gain.low, rows[1].gain.high) == pytest.approx((1, 1, 1))
    assert rows[1].value.high - rows[1].value.low > 20


def test_a_search_is_compared_with_the_paper_where_it_has_bounds() -> None:
    rivals = topdown.rivals_of((90.0, 60.0, 20.0), PAPER_BOUNDS[3], SCHEDULE, 1)
    assert list(rivals) == ["paper", "found", "random 1", "draft"] and rivals["paper"] == PAPER_BOUNDS[3]
    assert list(topdown.rivals_of((40.0,), None, SCHEDULE, 0)) == ["found", "draft"]


# --- on a model ---------------------------------------------------------------------------------------------

Line = Callable[..., list[str]]


@pytest.fixture
def line(model_dir: Path) -> Line:
    """options -> the command line that calibrates the tiny model on three prompts."""
    shortest = [
        "calibrate",
        "--model",
        str(model_dir),
        "--pixels",
        "0.06M",
        "--prompts",
        "3",
        "--step",
        "50",
        "--batch",
        "2",
    ]
    return lambda *more: [*shortest, "--precision", "fp32", "--compare", "1", *more]


def _measure(line: Line, folder: Path, *more: str) -> Measure:
    asked = calibrating.check(cli._parser().parse_args(line(*more, "--state", str(folder))))
    bench = calibrating.Bench(asked)
    batches = Batches(asked.workers, asked, calibrating.Bench, calibrating.measure)
    batches.loaded = bench
    return Measure(asked, bench.studio.backbone, batches)


def test_a_try_gives_what_generate_would_draw(line: Line, tmp_path: Path) -> None:
    known = _measure(line, tmp_path, "--k", "2", "--metric", "latent", "--seed", "5")
    plan, studio, sets = Plan.moss((60.0, 30.0)), known.batches.loaded.studio, known.asked.sets["search"]
    ours, dense = (
        generate(studio.backbone, studio.recipe(sets.texts[2:], [7]), method).total.cpu()
        for method in (plan, Plan(0))
    )
    pair = metrics.Pair(metrics.Drawn(None, (ours,)), metrics.Drawn(None, (dense,)))
    assert known.values(plan)[2] == pytest.approx(metrics.METRICS["latent"].values(pair).item(), abs=1e-6)


def test_a_plan_is_drawn_once(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, plan = _measure(line, tmp_path, "--k", "3", "--metric", "latent"), Plan.moss((50.0, 25.0, 10.0))
    first = known.values(plan)
    assert len(list((tmp_path / "tries").iterdir())) == 2  # three prompts, two drawn together
    monkeypatch.setattr(calibrating, "generate", lambda *_: pytest.fail("it was drawn again"))
    assert (known.values(plan) == first).all() and known.seconds(plan, "search", 3) > 0


def test_rivals_come_with_dense_and_are_the_same_alone(line: Line, tmp_path: Path) -> None:
    known, dense = _measure(line, tmp_path / "with", "--k", "2", "--metric", "latent"), Plan(0, guidance=2.0)
    known.values(dense)
    rivals = planner.rivals(2.0, len(known.asked.checked.schedule))
    paths = sorted(path.name for path in (tmp_path / "with" / "tries").iterdir())
    assert len(rivals) == 6 and len(paths) == 2 * 7  # in two batches
    alone = _measure(line, tmp_path / "alone", "--k", "2", "--metric", "latent")
    for plan in rivals.values():
        assert (known.values(plan) == alone.values(plan)).all()
        assert 0 < known.seconds(plan, "search", 3) < known.seconds(dense, "search", 3)
    assert sorted(path.name for path in (tmp_path / "with" / "tries").iterdir()) == paths


def test_a_damaged_try_is_named(line: Line, tmp_path: Path) -> None:
    known, plan = _measure(line, tmp_path, "--k", "2", "--metric", "latent"), Plan(-2)
    known.values(plan)
    path = next((tmp_path / "tries").iterdir())
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"{path.name} holds no try"):
        known.values(plan)


def test_one_scale_redrawn_whole_is_dense_by_every_likeness(line: Line, tmp_path: Path) -> None:
    for metric, best in (("latent", metrics.ALIKE), ("psnr", metrics.ALIKE), ("ssim", 1), ("texture", 1)):
        values = _measure(line, tmp_path / metric, "--k", "1", "--metric", metric).values(Plan.moss((100.0,)))
        assert values == pytest.approx([best] * 3), metric


def test_the_command_finds_compares_plots_and_goes_on(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, plot = tmp_path / "state", tmp_path / "plot.png"
    argv = line("--k", "2", "--metric", "latent", "--state", str(state), "--plot", str(plot))
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert [row.split()[0] for row in out.splitlines()[4:]] == ["paper", "found", "random", "draft"]
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    monkeypatch.setattr(calibrating, "measure", lambda *_: pytest.fail("something was measured again"))
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
    assert set(metrics.METRICS) == set(commands.METRICS) and topdown.ORDERS == commands.ORDERS


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
        (["--state", "README.md"], "is a file"),
        (["--search", "choice"], "name its folder with --state"),
        (["--budgets", "0.3,2"], "between 0 and 1"),
        (["--budgets", "few"], "is no list of shares"),
        (["--trials", "0"], "--trials must be 1 or more"),
        (["--search", "best"], "invalid choice: 'best'"),
        (["--gpus", "1"], "--gpus"),
        (["--method", "moss2"], "unrecognized arguments"),
        (["--tokens", "few"], "'few' is no number of tokens"),
        (["--tokens", "99", "--tolerance", "1"], "cannot be had together"),
    ],
)
def test_wrong_orders_are_refused_before_the_model_is_loaded(
    line: Line, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.setattr(calibrating, "load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.chdir(benchmarks.ROOT)
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
