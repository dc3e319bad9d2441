"""The evaluation: its statistics, its names, what it stores, and the page made from that.  Invariants, not scores."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfy_moss import cli
from comfy_moss.bench import RESULTS
from comfy_moss.evaluation import bootstrap, draw, order, run, store, suite, tables, world
from comfy_moss.evaluation.analysis import Study
from comfy_moss.evaluation.bootstrap import Interval
from comfy_moss.evaluation.detector import detect, judge
from comfy_moss.evaluation.methods import parse_methods
from comfy_moss.evaluation.names import EVALUATED
from comfy_moss.evaluation.plot import Point, _front, pareto
from comfy_moss.evaluation.rows import read_rows
from comfy_moss.pipeline.generate import Method

METHODS = "dense,draft-3,moss3,moss3-unguided"


# --- prompts ----------------------------------------------------------------------------------------------------


def _training_scenes(count: int) -> list[world.Scene]:
    rng = np.random.default_rng(5)
    return [world.sample_scene(rng) for _ in range(count)]


def test_one_combination_in_five_is_held_out() -> None:
    assert np.mean([suite.held_out(scene) for scene in _training_scenes(2000)]) == pytest.approx(0.2, abs=0.03)


def test_every_prompt_is_held_out_and_none_is_left_when_training_drops_those() -> None:
    asked = {world.canonical_caption(world.complete(case.scene, np.random.default_rng(0))) for case in suite.prompts(20, seed=3)}
    trained = {world.canonical_caption(scene) for scene in _training_scenes(3000) if not suite.held_out(scene)}
    assert all(suite.held_out(case.scene) for case in suite.prompts(20, seed=3))
    assert not asked & trained
    assert asked & {world.canonical_caption(scene) for scene in _training_scenes(3000)}  # which they are without it


def test_the_split_is_the_one_that_the_embedded_model_was_trained_with() -> None:
    scenes = {f"{shape} {texture}": world.Scene((world.Group(1, world.Thing(shape, None, texture)),), None, "black", "plain")
              for shape in world.SHAPES for texture in world.TEXTURES}  # fmt: skip
    kept = [name for name, scene in scenes.items() if suite.held_out(scene)]
    assert kept == ["circle checkered", "square checkered", "star plain", "star checkered"]


def test_where_things_stand_does_not_make_another_combination() -> None:
    for scene in (s for s in _training_scenes(400) if s.relation):
        others = [replace(scene, groups=scene.groups[::-1]), replace(scene, relation=None), replace(scene, relation="below")]
        assert {suite.held_out(other) for other in others} == {suite.held_out(scene)}


def test_an_open_color_counts_as_the_usual_one() -> None:
    for shape in world.SHAPES:
        told, open_ = (world.Scene((world.Group(1, world.Thing(shape, color)),), None, "grey", "plain")
                       for color in (world.USUAL_COLORS[shape], None))  # fmt: skip
        assert suite.held_out(told) == suite.held_out(open_)


def test_every_shape_meets_every_count_and_relation() -> None:
    cases = suite.prompts(24, seed=2)
    counted = {(c.scene.groups[0].thing.shape, c.scene.groups[0].count) for c in cases if c.task == "counting"}
    placed = {(c.scene.groups[0].thing.shape, c.scene.relation) for c in cases if c.task == "position"}
    assert len(counted) == 6 * 3 and len(placed) == 6 * 4


def test_tasks_take_turns_and_every_case_has_another_one_for_partner() -> None:
    cases = order.in_turn(suite.prompts(3, seed=0))
    assert [case.task for case in cases] == list(suite.TASKS) * 3
    partners = order.partners(cases, seed=0)
    assert sorted(map(id, partners)) == sorted(map(id, cases))
    assert all(partner is not case for partner, case in zip(partners, cases, strict=True))


def test_renders_pass_and_shuffled_captions_score_at_chance() -> None:
    cases = order.in_turn(suite.prompts(25, seed=4))
    found = [detect(world.render(case.scene, np.random.default_rng(n))) for n, case in enumerate(cases)]
    right, shuffled = (
        np.mean([judge(case.task, case.scene, seen, 256) for case, seen in zip(asked, found, strict=True)])
        for asked in (cases, order.partners(cases, seed=0))
    )
    assert right >= 0.99
    assert shuffled < 0.25


# --- methods ----------------------------------------------------------------------------------------------------


def test_names_of_methods_and_their_order() -> None:
    named = parse_methods("moss4-unguided, moss4,fastvar,moss2-sa-unguided,draft")
    assert list(named) == [
        "dense", "fastvar", "draft-1", "draft-2", "moss2-sa-unguided", "draft-3", "draft-4", "moss4", "moss4-unguided", "draft-5",
    ]  # fmt: skip
    assert named["moss2-sa-unguided"] == replace(Method("moss", (50, 25)), cross_scale=False, guidance=False)
    assert named["moss4"].cross_scale and named["moss4"].guidance and named["draft-5"].skip == 5


def test_every_moss_has_its_draft_and_dense_beside_it() -> None:
    assert list(parse_methods("moss3-sa")) == ["dense", "draft-3", "moss3-sa"]
    assert {"dense", "draft-1", "moss5", "moss4-sa", "moss4-unguided", "fastvar"} <= set(parse_methods(EVALUATED))


@pytest.mark.parametrize("names", ["moss7", "draft-x", "moss4-fast", "sa", "fastvar-sa", " , "])
def test_unknown_methods_are_refused(names: str) -> None:
    with pytest.raises(ValueError, match="unknown|no methods"):
        parse_methods(names)


# --- statistics -------------------------------------------------------------------------------------------------


def test_the_interval_of_a_constant_has_no_width() -> None:
    weight = bootstrap.weights(["a"] * 9 + ["b"] * 3)
    found = bootstrap.mean([0.7] * 12, weight)
    assert [found.value, found.low, found.high] == pytest.approx([0.7] * 3)


def test_every_task_has_the_same_share_of_the_score_in_every_draw() -> None:
    tasks = np.array(["a"] * 9 + ["b"] * 3)
    weight = bootstrap.weights(tasks.tolist(), draws=50)
    for task in "ab":
        assert weight[:, tasks == task].sum(1) == pytest.approx(np.full(51, 0.5))
    assert bootstrap.mean(tasks == "b", weight).value == 0.5


def test_an_interval_is_as_wide_as_theory_says() -> None:
    hits = np.arange(400) % 4 == 0
    found = bootstrap.mean(hits, bootstrap.weights(["a"] * 400))
    error = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert [found.value, found.low, found.high] == pytest.approx([0.25, 0.25 - error, 0.25 + error], abs=0.006)


def test_a_ratio_is_of_sums_and_missing_where_nothing_is_compared() -> None:
    weight = bootstrap.weights(["a"] * 4)
    assert bootstrap.ratio([1, 2, 3, 0], [2, 4, 6, 0], weight) == Interval(0.5, 0.5, 0.5)
    assert bootstrap.ratio([1, 2, 3, 4], [0, 0, 0, 0], weight) is None


@pytest.mark.parametrize(("low", "high", "sign"), [(0.1, 0.3, 1), (-0.3, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.2, 0)])
def test_a_difference_counts_only_where_its_interval_leaves_zero_out(low: float, high: float, sign: int) -> None:
    assert Interval((low + high) / 2, low, high).sign == sign


def _result(shares: dict[str, float], seconds: dict[str, float], prompts: int = 240) -> dict[str, Any]:
    """A result in which each method shows a share of the prompts, the same ones that a better method shows."""
    each = prompts // 6
    rows = {}
    for name, share in shares.items():
        digits = "1" * round(share * each) + "0" * (each - round(share * each))
        tasks = dict.fromkeys(suite.TASKS, digits)
        rows[name] = {
            "hits": tasks, "shuffled": dict.fromkeys(suite.TASKS, "0" * each), "textured": ("1-" * prompts)[:prompts],
            "texture": [share] * prompts, "tokens": 10, "kv_bytes": 2**20, "psnr": [30.0] * prompts, "ssim": [0.9] * prompts,
            "draw_s": [seconds.get(name, 1.0)] * 5, "decode_s": [0.5] * 5,
        }  # fmt: skip
    methods = [name for name in shares if name not in ("render", "codec")]
    return {
        "format": run.FORMAT, "command": "python -m comfy_moss evaluate", "date": "2030-01-02T03:04:05+00:00",
        "hardware": {"device": "abacus", "cores": 2, "threads": 1, "load_average": None}, "versions": {"torch": "0"},
        "setting": {"model": "toy", "model_id": "0", "width": 64, "height": 64, "prompts": prompts, "methods": methods,
                    "workers": 1, "scales": 5, "cfg": 1.5, "tau": 0.5, "noise": "n", "seed": 0, "batch": 6, "precision": "fp32"},
        "distinct_prompts": prompts, "rows": rows, "correlation": {"2": [0.4, 0.6]},
    }  # fmt: skip


SHARES = {"render": 1.0, "codec": 0.95, "dense": 0.9, "fastvar": 0.6, "draft-3": 0.5, "moss3": 0.8, "moss3-sa": 0.7}
SECONDS = {"dense": 1.0, "fastvar": 0.4, "draft-3": 0.2, "moss3": 0.6, "moss3-sa": 0.6}


def test_a_method_differs_from_itself_by_nothing_and_in_pairs_luck_cancels_out() -> None:
    study = Study(_result(SHARES, SECONDS))
    assert study.difference("dense", "dense") == Interval(0, 0, 0)
    assert study.energy("dense", "dense") == Interval(1, 1, 1)
    alone, paired = study.score("dense"), study.difference("dense", "moss3")
    assert paired.value == pytest.approx(0.1)
    apart = np.hypot(alone.high - alone.low, (score := study.score("moss3")).high - score.low)
    assert paired.high - paired.low < 0.8 * apart


def test_hits_are_read_in_the_order_of_the_prompts() -> None:
    result = _result(SHARES, SECONDS, 12)
    result["rows"]["dense"]["hits"] = dict(zip(suite.TASKS, ("10", "01", "00", "11", "00", "00"), strict=True))
    study = Study(result)
    assert study.tasks == list(suite.TASKS) * 2
    assert study.hits("dense").tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0]
    assert [study.score("dense", task).value for task in suite.TASKS] == [0.5, 0.5, 0, 1, 0, 0]


def test_a_mixture_takes_exactly_as_long_and_scores_in_between() -> None:
    study = Study(_result(SHARES, SECONDS))
    mixture = study.at_time(0.4, ["dense", "draft-3"])
    assert (mixture.first, mixture.second) == ("draft-3", "dense")
    assert 0.2 * (1 - mixture.share) + 1.0 * mixture.share == pytest.approx(mixture.seconds) == pytest.approx(0.4)
    assert study.difference("moss3", mixture).value == pytest.approx(0.8 - (0.75 * 0.5 + 0.25 * 0.9))
    assert study.at_time(0.1, ["dense", "draft-3"]).seconds == 0.2 and study.at_time(9, ["dense", "draft-3"]).seconds == 1.0


def test_moss_meets_its_own_draft_and_both_rivals_at_equal_time() -> None:
    study = Study(_result(SHARES, SECONDS))
    rivals = study.rivals("moss3")
    assert list(rivals) == ["draft-3", "skipping, equal time", "fastvar", "fastvar, equal time"]
    assert {rivals["fastvar, equal time"].first, rivals["fastvar, equal time"].second} == {"fastvar", "dense"}
    assert all(rivals[name].seconds == study.seconds("moss3") for name in rivals if "equal" in name)


@pytest.mark.parametrize(
    ("dense", "draft", "said"), [(0.9, 0.5, "Gate: passed"), (0.9, 0.85, "Gate: not passed"), (0.5, 0.9, "Gate: not passed")]
)
def test_the_page_says_first_whether_its_tables_mean_anything(dense: float, draft: float, said: str) -> None:
    text = tables.page([_result(SHARES | {"dense": dense, "draft-3": draft}, SECONDS)], [])
    assert said in text.split("\n")[2] and ("means anything yet" in text) == ("not" in said)


def test_without_the_yardstick_the_gate_stays_open() -> None:
    assert "Gate: not tested" in tables.section(_result({"render": 1.0, "codec": 1.0, "dense": 0.9}, SECONDS))


def test_a_large_gap_in_few_prompts_does_not_pass_the_gate() -> None:
    assert Study(_result(SHARES | {"dense": 0.75, "draft-3": 0.5}, SECONDS, 24)).gate() is False


def test_the_tables_hold_a_row_for_every_method_and_pair() -> None:
    text = tables.section(_result(SHARES, SECONDS))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    counts = {name: sum(row[0] == f"| {name}" for row in rows) for name in ("dense", "fastvar", "draft-3", "moss3", "moss3-sa")}
    assert counts == {"dense": 2, "fastvar": 2, "draft-3": 2, "moss3": 2 + 4 + 1, "moss3-sa": 2 + 1}
    assert all(line.count("|") == text.splitlines()[at - 1].count("|") for at, line in enumerate(text.splitlines())
               if line.startswith("| ") and text.splitlines()[at - 1].startswith("| "))  # fmt: skip


def test_kernels_are_told_only_where_a_gpu_was_measured() -> None:
    row = {"label": "moss4, CSSA + kernels", "drawing_s": {"median": 0.0125}}
    measured = {"hardware": {"device": "Big GPU"}, "setting": {"shape": "2b"}, "ablation": [row]}
    result = _result(SHARES, SECONDS)
    assert "none is stored yet" in tables.section(result, [measured])
    measured["hardware"]["capability"] = "9.0"
    assert "| Big GPU | 2b | moss4, CSSA + kernels | 12.5 ms |" in tables.section(result, [measured])


# --- pictures of a result ---------------------------------------------------------------------------------------


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [Point(name, s, Interval(v, v, v)) for name, s, v in [("a", 1, 0.5), ("b", 2, 0.4), ("c", 3, 0.9), ("d", 3, 0.8)]]
    assert [point.name for point in _front(points)] == ["a", "c"]


def test_the_plot_can_be_opened_and_is_not_empty() -> None:
    with Image.open(io.BytesIO(pareto(Study(_result(SHARES, SECONDS))))) as image:
        assert image.size == (1440, 560) and len(image.getcolors(10000)) > 20


# --- the whole chain --------------------------------------------------------------------------------------------


@pytest.fixture
def command(model_dir: Path) -> list[str]:
    """An evaluation of a tiny random model: twelve prompts in three batches."""
    options = ["--model", model_dir, "--pixels", "0.06M", "--per-task", 2, "--batch", 5, "--device", "cpu", "--precision", "fp32"]
    return ["evaluate", *map(str, options), "--methods", METHODS]


def _numbers(capsys: pytest.CaptureFixture, command: Sequence[str]) -> dict[str, Any]:
    assert cli.main([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _timeless(result: dict[str, Any]) -> dict[str, Any]:
    """What must be the same each time; the number of workers may differ."""
    times = ("draw_s", "decode_s")
    rows = {name: {k: v for k, v in row.items() if k not in times} for name, row in result["rows"].items()}
    return {"rows": rows, "correlation": result["correlation"], "distinct": result["distinct_prompts"]}


def test_an_evaluation_tells_cost_and_likeness_of_every_method(
    command: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    result = _numbers(capsys, [*command, "--save", str(tmp_path), "--correlation", "7"])
    rows = result["rows"]
    assert list(rows) == ["render", "codec", *METHODS.split(",")]
    assert rows["moss3"]["tokens"] > rows["draft-3"]["tokens"] < rows["dense"]["tokens"]
    assert rows["moss3"]["kv_bytes"] == rows["draft-3"]["kv_bytes"] < rows["dense"]["kv_bytes"]
    assert "psnr" not in rows["dense"] and all(0 < value < 99 for value in rows["moss3"]["psnr"])
    assert all(len(row["texture"]) == len(row["textured"]) == 12 for row in rows.values())
    assert all(len(rows[name]["draw_s"]) == 3 and min(rows[name]["draw_s"]) > 0 for name in METHODS.split(","))
    assert set(result["correlation"]) == {"2", "3", "4", "5"} and len(result["correlation"]["2"]) == 7
    assert all(set(digits) == {"1"} for digits in rows["render"]["hits"].values())
    assert store.stored(tmp_path) == [result]
    with Image.open(tmp_path / tables.image_name(result, tables.GRID)) as sheet:
        assert sheet.width > 5 * 128 and 2 * 128 < sheet.height < 3 * 128  # prompts 0 and 7


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    command: list[str], capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _numbers(capsys, command)
    real, drawn = draw.draw, []

    def interrupted(studio: draw.Studio, numbers: Sequence[int]) -> dict[str, draw.Drawn]:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(numbers)
        return real(studio, numbers)

    monkeypatch.setattr(draw, "draw", interrupted)
    assert cli.main([*command, "--out", str(tmp_path)]) == 130
    assert len(read_rows(tmp_path)) == 10 * 6
    monkeypatch.setattr(draw, "draw", lambda *args: drawn.append(args[1]) or real(*args))
    capsys.readouterr()
    assert _timeless(_numbers(capsys, [*command, "--out", str(tmp_path)])) == _timeless(whole)
    assert drawn == [range(0, 5), range(5, 10), range(10, 12)]
    assert cli.main([*command, "--out", str(tmp_path), "--seed", "1"]) == 2
    assert "holds another evaluation, of seed 0, not 1" in capsys.readouterr().err


class _InProcess:
    """A worker that runs when it is started, in this process."""

    drawn: list[int] = []

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        assert command[:3] == [sys.executable, "-m", "comfy_moss"] and env["PYTHONPATH"].split(os.pathsep)[0] == str(run.ROOT)
        folder = Path(command[command.index("--out") + 1])
        before = len(read_rows(folder))
        self.code = cli.main(command[3:])
        self.drawn.append(len(read_rows(folder)) - before)

    def wait(self) -> int:
        return self.code

    def terminate(self) -> None:
        pass


def test_there_are_as_many_workers_as_threads_batches_and_reason_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order.torch, "get_num_threads", lambda: 8)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [order.usual_workers(cpu, 100), order.usual_workers(cpu, 3), order.usual_workers(gpu, 100)] == [4, 3, 1]


def test_two_workers_share_the_batches_and_draw_what_one_draws(
    command: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.subprocess, "Popen", _InProcess)
    monkeypatch.setattr(_InProcess, "drawn", [])
    assert _timeless(_numbers(capsys, [*command, "--workers", "2"])) == _timeless(_numbers(capsys, command))
    assert _InProcess.drawn == [7 * 6, 5 * 6]


def test_a_worker_that_fails_is_told(
    command: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.sys, "executable", shutil.which("false"))
    assert cli.main([*command, "--workers", "2"]) == 2
    assert "a worker stopped" in capsys.readouterr().err


def test_a_damaged_file_of_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "00000.jsonl").write_text('{"n": 0}\n')
    with pytest.raises(ValueError, match="00000.jsonl holds no rows"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per-task", "0"], "--per-task must be 1 or more"),
        (["--workers", "0"], "--workers must be 1 or more"),
        (["--methods", "moss9"], "method 'moss9' is unknown"),
        (["--methods", "draft-9"], "skipping 9 scales leaves nothing"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--model", "grand"], "there is no model 'grand'"),
        (["--json", "."], "cannot be written"),
        (["--out", "README.md"], "cannot be written"),
    ],
)
def test_wrong_orders_are_refused_before_anything_is_drawn(
    command: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "evaluate", lambda *_: pytest.fail("it was drawn"))
    monkeypatch.chdir(RESULTS.parent.parent)
    assert cli.main([*command, *options]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_stored_results_make(tmp_path: Path) -> None:
    if not store.PAGE.exists():
        assert store.stored() == [], "run: python -m comfy_moss evaluate --tables"
        return
    text = store.write_page(target=tmp_path / "page.md").read_text(encoding="utf-8")
    assert text == store.PAGE.read_text(encoding="utf-8"), "run: python -m comfy_moss evaluate --tables"
    for kind in (tables.PLOT, tables.GRID):
        assert all((store.IMAGES / tables.image_name(result, kind)).exists() for result in store.stored())


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "quality-odd.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="quality-odd.json is no result"):
        store.stored(tmp_path)
