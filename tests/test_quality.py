"""The quality page: the statistics, what they are made from, and the tables and plots that tell them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfy_moss.benchmarks import analysis, evaluate, pages, quality, suite
from comfy_moss.benchmarks.analysis import Interval, Study
from comfy_moss.benchmarks.plots import Point, front, pareto

# --- statistics ---------------------------------------------------------------------------------------------


def test_the_interval_of_a_constant_has_no_width() -> None:
    weight = analysis.weights(["a"] * 9 + ["b"] * 3)
    found = analysis.mean([0.7] * 12, weight)
    assert [found.value, found.low, found.high] == pytest.approx([0.7] * 3)


def test_every_task_has_the_same_share_of_the_score_in_every_draw() -> None:
    tasks = np.array(["a"] * 9 + ["b"] * 3)
    weight = analysis.weights(tasks.tolist(), draws=50)
    for task in "ab":
        assert weight[:, tasks == task].sum(1) == pytest.approx(np.full(51, 0.5))
    assert analysis.mean(tasks == "b", weight).value == 0.5


def test_an_interval_is_as_wide_as_theory_says() -> None:
    hits = np.arange(400) % 4 == 0
    found = analysis.mean(hits, analysis.weights(["a"] * 400))
    error = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert [found.value, found.low, found.high] == pytest.approx(
        [0.25, 0.25 - error, 0.25 + error], abs=0.006
    )


def test_a_ratio_is_of_sums_and_missing_where_nothing_is_compared() -> None:
    weight = analysis.weights(["a"] * 4)
    assert analysis.ratio([1, 2, 3, 0], [2, 4, 6, 0], weight) == Interval(0.5, 0.5, 0.5)
    assert analysis.ratio([1, 2, 3, 4], [0, 0, 0, 0], weight) is None


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0.1, 0.3, 1), (-0.3, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.2, 0)]
)
def test_a_difference_counts_only_where_its_interval_leaves_zero_out(
    low: float, high: float, sign: int
) -> None:
    assert Interval((low + high) / 2, low, high).sign == sign


def _result(shares: dict[str, float], seconds: dict[str, float], prompts: int = 240) -> dict[str, Any]:
    """A result in which each method shows a share of the prompts, the same ones that a better method shows.
    """
    each = prompts // 6
    rows = {}
    for name, share in shares.items():
        digits = "1" * round(share * each) + "0" * (each - round(share * each))
        tasks = dict.fromkeys(suite.TASKS, digits)
        rows[name] = {
            "hits": tasks, "shuffled": dict.fromkeys(suite.TASKS, "0" * each),
            "textured": ("1-" * prompts)[:prompts], "texture": [share] * prompts, "tokens": 10,
            "kv_bytes": 2**20, "psnr": [30.0] * prompts, "ssim": [0.9] * prompts,
            "draw_s": [seconds.get(name, 1.0)] * 5, "decode_s": [0.5] * 5,
        }
    methods = [name for name in shares if name not in ("render", "codec")]
    return {
        "format": evaluate.FORMAT, "command": "python -m comfy_moss evaluate",
        "date": "2030-01-02T03:04:05+00:00",
        "hardware": {"device": "abacus", "cores": 2, "threads": 1, "load_average": None},
        "versions": {"torch": "0"},
        "setting": {
            "model": "toy", "model_id": "0", "width": 64, "height": 64, "prompts": prompts,
            "methods": methods,
            "bounds": {name: [50.0, 15.0, 5.0] for name in methods if name.startswith("moss")}, "workers": 1,
            "scales": 5, "cfg": 1.5, "tau": 0.5, "noise": "n", "seed": 0, "batch": 6, "precision": "fp32",
        },
        "distinct_prompts": prompts, "rows": rows, "correlation": {"2": [0.4, 0.6]},
    }


SHARES = {
    "render": 1.0, "codec": 0.95, "dense": 0.9, "fastvar": 0.6, "draft-3": 0.5, "moss3": 0.8, "moss3-sa": 0.7,
}
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
    result["rows"]["dense"]["hits"] = dict(
        zip(suite.TASKS, ("10", "01", "00", "11", "00", "00"), strict=True)
    )
    study = Study(result)
    assert study.tasks == list(suite.TASKS) * 2
    assert study.hits("dense").tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0]
    assert [study.score("dense", task).value for task in suite.TASKS] == [0.5, 0.5, 0, 1, 0, 0]


def test_a_mixture_takes_exactly_as_long_and_scores_in_between() -> None:
    study = Study(_result(SHARES, SECONDS))
    mixture = study.at_time(0.4, ["dense", "draft-3"])
    assert (mixture.first, mixture.second) == ("draft-3", "dense")
    assert (
        0.2 * (1 - mixture.share) + 1.0 * mixture.share
        == pytest.approx(mixture.seconds)
        == pytest.approx(0.4)
    )
    assert study.difference("moss3", mixture).value == pytest.approx(0.8 - (0.75 * 0.5 + 0.25 * 0.9))
    assert (
        study.at_time(0.1, ["dense", "draft-3"]).seconds == 0.2
        and study.at_time(9, ["dense", "draft-3"]).seconds == 1.0
    )


def test_moss_meets_its_own_draft_and_both_rivals_at_equal_time() -> None:
    study = Study(_result(SHARES, SECONDS))
    rivals = study.rivals("moss3")
    assert list(rivals) == ["draft-3", "skipping, equal time", "fastvar", "fastvar, equal time"]
    assert {rivals["fastvar, equal time"].first, rivals["fastvar, equal time"].second} == {"fastvar", "dense"}
    assert all(rivals[name].seconds == study.seconds("moss3") for name in rivals if "equal" in name)


def test_a_plan_meets_moss_of_both_bounds_at_equal_time_and_what_drafts_with_its_strength() -> None:
    shares = SHARES | {"moss3-paper": 0.65, "plan30": 0.85, "plan20": 0.8, "dense cfg 2": 0.95}
    seconds = {"moss3-paper": 0.3, "plan30": 0.4, "plan20": 0.25, "dense cfg 2": 2.0}
    result = _result(shares, SECONDS | seconds)
    plans = {"plan30": "draft-3 cfg 1; -1@60", "plan20": "draft-3 cfg 2; -1@60"}
    result["setting"] |= {"cfg": 1.0, "plans": plans}
    study = Study(result)
    own, other = study.rivals("plan30"), study.rivals("plan20")
    assert next(iter(own)) == "draft-3" and "draft-3" not in other  # drafts alike, or with another strength
    assert own["skipping, equal time"] == study.at_time(0.4, ["dense", "draft-3"])
    assert own["moss, equal time"] == study.at_time(0.4, ["draft-3", "moss3", "dense"])
    assert own["dense"] == "dense" and own["dense cfg 2"] == "dense cfg 2"
    assert own["the paper's moss, equal time"] == study.at_time(0.4, ["draft-3", "moss3-paper", "dense"])
    assert all(rival.seconds == 0.4 for title, rival in own.items() if "equal" in title)


@pytest.mark.parametrize(
    ("dense", "draft", "said"),
    [(0.9, 0.5, "Gate: passed"), (0.9, 0.85, "Gate: not passed"), (0.5, 0.9, "Gate: not passed")],
)
def test_the_page_says_first_whether_its_tables_mean_anything(dense: float, draft: float, said: str) -> None:
    text = quality.page([_result(SHARES | {"dense": dense, "draft-3": draft}, SECONDS)], [])
    assert said in text.split("\n")[2] and ("means anything yet" in text) == ("not" in said)


def test_without_the_yardstick_the_gate_stays_open() -> None:
    assert "Gate: not tested" in quality.section(
        _result({"render": 1.0, "codec": 1.0, "dense": 0.9}, SECONDS)
    )


def test_a_large_gap_in_few_prompts_does_not_pass_the_gate() -> None:
    assert Study(_result(SHARES | {"dense": 0.75, "draft-3": 0.5}, SECONDS, 24)).gate() is False


def test_the_tables_hold_a_row_for_every_method_and_pair() -> None:
    text = quality.section(_result(SHARES, SECONDS))
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    counts = {
        name: sum(row[0] == f"| {name}" for row in rows)
        for name in ("dense", "fastvar", "draft-3", "moss3", "moss3-sa")
    }
    assert counts == {"dense": 2, "fastvar": 2, "draft-3": 2, "moss3": 2 + 4 + 1, "moss3-sa": 2 + 1}
    assert all(
        line.count("|") == text.splitlines()[at - 1].count("|")
        for at, line in enumerate(text.splitlines())
        if line.startswith("| ") and text.splitlines()[at - 1].startswith("| ")
    )


def test_the_papers_bounds_stand_beside_a_models_own() -> None:
    result = _result(SHARES | {"moss3-paper": 0.65}, SECONDS)
    study = Study(result)
    assert study.rivals("moss3")["the paper's bounds"] == "moss3-paper"
    assert list(study.rivals("moss3-paper"))[0] == "draft-3" and "the paper's bounds" not in study.rivals(
        "moss3-paper"
    )
    text = quality.section(result)
    assert "moss3 50, 15, 5; moss3-paper 50, 15, 5" in text
    assert "| moss3-paper | CSSA" not in text and "| moss3-sa | SA" in text


def test_kernels_are_told_only_where_a_gpu_was_measured() -> None:
    row = {"label": "moss4, CSSA + kernels", "drawing_s": {"median": 0.0125}}
    measured = {"hardware": {"device": "Big GPU"}, "setting": {"shape": "2b"}, "ablation": [row]}
    result = _result(SHARES, SECONDS)
    assert "none is stored yet" in quality.section(result, [measured])
    measured["hardware"]["capability"] = "9.0"
    assert "| Big GPU | 2b | moss4, CSSA + kernels | 12.5 ms |" in quality.section(result, [measured])


def test_the_final_tables_plans_stay_what_was_measured_under_all_their_names() -> None:
    result = _result(SHARES | {"plan20": 0.85}, SECONDS)
    texts = {"dense": "dense", "moss3": "draft-3; -3@30 -2@20 -1@20", "plan20": "draft-3 cfg 1; -1@60"}
    result["setting"] |= {"model": "nano", "cfg": 1.0, "plans": texts}
    chosen = {name: {"plan": texts["plan20"]} for name in ("plan30", "plan20")}
    found = pages.measured_plans(result, [{"model": "nano", "scales": 5, "plans": chosen}])["plans"]
    assert {name: one["plan"] for name, one in found.items()} == {
        "dense": "dense cfg 1", "moss3": "draft-3 cfg 1; -3@30 -2@20 -1@20",
        "plan20": texts["plan20"], "plan30": texts["plan20"],
    }
    assert found["plan30"]["score"]["value"] == pytest.approx(Study(result).overall("plan20").value)
    result["setting"]["cfg"] = 1.5  # nano's own
    assert pages.measured_plans(result)["plans"]["moss3"]["plan"] == texts["moss3"]


# --- pictures of a result -----------------------------------------------------------------------------------


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [
        Point(name, s, Interval(v, v, v))
        for name, s, v in [("a", 1, 0.5), ("b", 2, 0.4), ("c", 3, 0.9), ("d", 3, 0.8)]
    ]
    assert [point.name for point in front(points)] == ["a", "c"]


def test_the_plot_can_be_opened_and_is_not_empty() -> None:
    with Image.open(io.BytesIO(pareto(Study(_result(SHARES, SECONDS))))) as image:
        assert image.size == (1440, 560) and len(image.getcolors(10000)) > 20


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_is_what_the_stored_results_make(tmp_path: Path) -> None:
    if not pages.QUALITY.exists():
        assert pages.stored("evaluate") == [], "run: python -m comfy_moss evaluate --tables"
        return
    text = pages.write_quality(target=tmp_path / "page.md").read_text(encoding="utf-8")
    assert text == pages.QUALITY.read_text(encoding="utf-8"), "run: python -m comfy_moss evaluate --tables"
    asked, kept = ((folder / "why.md").read_text(encoding="utf-8") for folder in (tmp_path, pages.DOCS))
    assert asked == kept, "run: python -m comfy_moss evaluate --tables"
    for kind in ("pareto", "grid"):
        assert all(
            (pages.IMAGES / quality.image_name(result, kind)).exists() for result in pages.stored("evaluate")
        )


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "quality-odd.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="quality-odd.json is no result"):
        pages.stored("evaluate", tmp_path)


def test_a_hit_without_its_texture_does_not_count_where_the_prompt_names_one() -> None:
    result = _result(SHARES | {"dense": 1.0, "draft-3": 1.0}, SECONDS, 240)
    # every second prompt names a texture, and no picture shows it
    result["rows"]["draft-3"]["textured"] = "0-" * 120
    study = Study(result)
    assert study.score("draft-3").value == pytest.approx(1.0) and study.faithfulness(
        "dense"
    ).value == pytest.approx(1.0)
    assert study.faithfulness("draft-3").value == pytest.approx(0.5)
    assert study.faithfulness_difference("dense", "draft-3").value == pytest.approx(0.5)
    assert study.gate() is True
    result["rows"]["draft-3"]["textured"] = "1-" * 120
    assert Study(result).gate() is False
