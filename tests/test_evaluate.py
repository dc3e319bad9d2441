"""The evaluation: its prompts, its names, and the way from an order to a result.  Invariants, not scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfy_moss import benchmarks, cli
from comfy_moss.benchmarks import draw, evaluate, pages, quality, rendering, suite, world
from comfy_moss.benchmarks.commands import EVALUATED
from comfy_moss.benchmarks.detector import detect, judge
from comfy_moss.benchmarks.evaluate import read_rows
from comfy_moss.benchmarks.metrics import Drawn
from comfy_moss.benchmarks.studio import parse_methods
from comfy_moss.model.backbone import PAPER, Backbone
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.plan import Plan, generate

METHODS = "dense,draft-3,moss3,moss3-unguided"


# --- prompts ------------------------------------------------------------------------------------------------


def _training_scenes(count: int) -> list[world.Scene]:
    rng = np.random.default_rng(5)
    return [world.sample_scene(rng) for _ in range(count)]


def test_one_combination_in_five_is_held_out() -> None:
    assert np.mean([suite.held_out(scene) for scene in _training_scenes(2000)]) == pytest.approx(
        0.2, abs=0.03
    )


def test_every_prompt_is_held_out_and_none_is_left_when_training_drops_those() -> None:
    scenes = [world.complete(case.scene, np.random.default_rng(0)) for case in suite.prompts(20, seed=3)]
    asked = {world.canonical_caption(scene) for scene in scenes}
    trained = {
        world.canonical_caption(scene) for scene in _training_scenes(3000) if not suite.held_out(scene)
    }
    assert all(suite.held_out(case.scene) for case in suite.prompts(20, seed=3))
    assert not asked & trained
    assert asked & {
        world.canonical_caption(scene) for scene in _training_scenes(3000)
    }  # which they are without it


def test_the_split_is_the_one_that_the_embedded_model_was_trained_with() -> None:
    scenes = {
        f"{shape} {texture}": world.Scene(
            (world.Group(1, world.Thing(shape, None, texture)),), None, "black", "plain"
        )
        for shape in world.SHAPES
        for texture in world.TEXTURES
    }
    kept = [name for name, scene in scenes.items() if suite.held_out(scene)]
    assert kept == ["circle checkered", "square checkered", "star plain", "star checkered"]


def test_where_things_stand_does_not_make_another_combination() -> None:
    for scene in (s for s in _training_scenes(400) if s.relation):
        others = [
            replace(scene, groups=scene.groups[::-1]),
            replace(scene, relation=None),
            replace(scene, relation="below"),
        ]
        assert {suite.held_out(other) for other in others} == {suite.held_out(scene)}


def test_an_open_color_counts_as_the_usual_one() -> None:
    for shape in world.SHAPES:
        told, open_ = (world.Scene((world.Group(1, world.Thing(shape, color)),), None, "grey", "plain")
                       for color in (world.USUAL_COLORS[shape], None))
        assert suite.held_out(told) == suite.held_out(open_)


def test_every_shape_meets_every_count_and_relation() -> None:
    cases = suite.prompts(24, seed=2)
    counted = {
        (c.scene.groups[0].thing.shape, c.scene.groups[0].count) for c in cases if c.task == "counting"
    }
    placed = {(c.scene.groups[0].thing.shape, c.scene.relation) for c in cases if c.task == "position"}
    assert len(counted) == 6 * 3 and len(placed) == 6 * 4


def test_tasks_take_turns_and_every_case_has_another_one_for_partner() -> None:
    cases = suite.in_turn(suite.prompts(3, seed=0))
    assert [case.task for case in cases] == list(suite.TASKS) * 3
    partners = suite.partners(cases, seed=0)
    assert sorted(map(id, partners)) == sorted(map(id, cases))
    assert all(partner is not case for partner, case in zip(partners, cases, strict=True))


def test_renders_pass_and_shuffled_captions_score_at_chance() -> None:
    cases = suite.in_turn(suite.prompts(25, seed=4))
    found = [detect(rendering.render(case.scene, np.random.default_rng(n))) for n, case in enumerate(cases)]
    right, shuffled = (
        np.mean([judge(case.task, case.scene, seen, 256) for case, seen in zip(asked, found, strict=True)])
        for asked in (cases, suite.partners(cases, seed=0))
    )
    assert right >= 0.99
    assert shuffled < 0.25


# --- methods ------------------------------------------------------------------------------------------------


def test_names_of_methods_and_their_order() -> None:
    named = parse_methods("moss4-unguided, moss4,fastvar,moss2-sa-unguided,draft")
    assert list(named) == [
        "dense",
        "fastvar",
        "draft-1",
        "draft-2",
        "moss2-sa-unguided",
        "draft-3",
        "draft-4",
        "moss4",
        "moss4-unguided",
        "draft-5",
    ]
    assert named["moss2-sa-unguided"] == Plan.moss((50, 25), cross_scale=False, guidance=False)
    assert named["moss4"] == Plan.moss(PAPER.bounds[4]) and named["draft-5"] == Plan(-5)


def test_the_papers_bounds_stay_a_method_where_a_model_has_its_own() -> None:
    own = replace(PAPER, calibrated={4: (90.0, 20.0, 5.0, 1.0)})
    named = parse_methods("moss4-paper-sa,moss4-paper,moss4,moss2-paper", own)
    assert list(named) == ["dense", "draft-2", "moss2", "draft-4", "moss4", "moss4-paper", "moss4-paper-sa"]
    steps = {name: method.passes[0] for name, method in named.items() if method.name == "moss"}
    assert steps["moss4"].bounds == (90, 20, 5, 1) and steps["moss4-paper"].bounds == (80, 70, 30, 10)
    assert not steps["moss4-paper-sa"].cross_scale and steps["moss2"].bounds == (50, 25)


def test_a_plan_with_the_recipes_own_strength_starts_from_the_plain_draft() -> None:
    plan = "draft-3 cfg 1; -1@45"
    assert list(parse_methods(plan, cfg=1.0)) == ["dense", "draft-3", plan]
    assert list(parse_methods(plan, cfg=3.0)) == ["dense", "draft-3 cfg 1", plan]


def test_a_plan_with_several_names_is_called_by_the_first() -> None:
    own = replace(PAPER, plans={"plan20": "draft-3; -1@45", "plan30": "draft-3; -1@45"})
    for name in own.plans:
        assert list(parse_methods(name, own)) == ["dense", "draft-3", "plan20"]


def test_every_moss_has_its_draft_and_dense_beside_it() -> None:
    assert list(parse_methods("moss3-sa")) == ["dense", "draft-3", "moss3-sa"]
    assert {"dense", "draft-1", "moss5", "moss4-sa", "moss4-unguided", "fastvar"} <= set(
        parse_methods(EVALUATED)
    )


@pytest.mark.parametrize("names", ["moss7", "draft-x", "moss4-fast", "sa", "fastvar-sa", " , "])
def test_unknown_methods_are_refused(names: str) -> None:
    with pytest.raises(ValueError, match="unknown|no methods"):
        parse_methods(names)


# --- the whole chain ----------------------------------------------------------------------------------------


@pytest.fixture
def command(model_dir: Path) -> list[str]:
    """An evaluation of a tiny random model: twelve prompts in three batches."""
    options = [
        "--model",
        model_dir,
        "--pixels",
        "0.06M",
        "--per-task",
        2,
        "--batch",
        5,
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
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
    assert all(
        len(rows[name]["draw_s"]) == 3 and min(rows[name]["draw_s"]) > 0 for name in METHODS.split(",")
    )
    assert set(result["correlation"]) == {"2", "3", "4", "5"} and len(result["correlation"]["2"]) == 7
    assert all(set(digits) == {"1"} for digits in rows["render"]["hits"].values())
    assert pages.stored("evaluate", tmp_path) == [result]
    with Image.open(tmp_path / quality.image_name(result, "grid")) as sheet:
        assert sheet.width > 5 * 128 and 2 * 128 < sheet.height < 3 * 128  # prompts 0 and 7


def test_methods_that_share_drafts_are_those_drawn_alone(backbone: Backbone) -> None:
    cases = suite.in_turn(suite.prompts(1, seed=3))[:2]
    texts = (torch.randn(3, 32), torch.randn(5, 32))
    recipe = Recipe(texts, None, (3, 4), make_schedule(1.0, "0.06M"), Guidance(3.0))
    plans = "draft-4; -4@70; -1@45 unguided,draft-2 cfg 2; -1@9,draft-2 cfg 2; -1@50 cfg 4"
    methods = parse_methods(f"dense,draft-1,moss3,moss3-sa,moss3-unguided,fastvar,{plans}")
    drawn = draw.draw(backbone, recipe, methods, cases)
    assert [*drawn][-2:] == [draw.RENDER, draw.CODEC] and set(methods) < set(drawn)
    for name, method in methods.items():
        alone = generate(backbone, recipe, method)
        assert torch.equal(drawn[name].images, draw.as_seen(alone.image)), name
        if drawn[name].totals:
            assert torch.equal(drawn[name].totals[-1], alone.total)
        ours, its = (replace(of.cost, seconds=dict.fromkeys(of.cost.seconds)) for of in (drawn[name], alone))
        assert ours == its
    drafting = [drawn[name].cost.seconds["draft"] for name in ("draft-3", "draft-1", "dense")]
    assert 0 < drafting[0] < drafting[1] < drafting[2]
    assert drawn["moss3"].cost.seconds["draft"] == drafting[0] and drawn["moss3"].cost.seconds["refine"] > 0


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    command: list[str], capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _numbers(capsys, command)
    real, drawn = evaluate.draw, []

    def interrupted(backbone: Backbone, recipe: Recipe, *rest: Any) -> dict[str, Drawn]:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(recipe.seeds)
        return real(backbone, recipe, *rest)

    monkeypatch.setattr(evaluate, "draw", interrupted)
    assert cli.main([*command, "--out", str(tmp_path)]) == 130
    assert len(read_rows(tmp_path)) == 10 * 6
    monkeypatch.setattr(evaluate, "draw", lambda *args: drawn.append(args[1].seeds) or real(*args))
    capsys.readouterr()
    assert _timeless(_numbers(capsys, [*command, "--out", str(tmp_path)])) == _timeless(whole)
    assert drawn == [tuple(range(0, 5)), tuple(range(5, 10)), (10, 11)]
    assert cli.main([*command, "--out", str(tmp_path), "--seed", "1"]) == 2
    assert "holds another evaluation, of seed 0, not 1" in capsys.readouterr().err


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
    command: list[str],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: pytest.fail("it was drawn"))
    monkeypatch.chdir(benchmarks.ROOT)
    assert cli.main([*command, *options]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
