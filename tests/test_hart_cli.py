"""HART from the command line: the same commands, told apart by the files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hart_builders import write_hart_model

from comfy_moss import cli


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hart_model(tmp_path_factory.mktemp("models") / "hart-0.7b-1024px")


def generate(model: Path, target: Path, capsys: pytest.CaptureFixture, *options: str) -> dict:
    code = cli.main(
        ["generate", "a red star", "--model", str(model), "-o", str(target / "a.png"), "--json", *options]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_moss2_with_the_papers_bounds_is_what_is_drawn_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    facts = generate(model, tmp_path, capsys)

    assert (facts["method"], facts["bounds"], facts["cfg"], facts["tau"]) == ("moss2", [80.0, 55.0], 5.5, 1.0)
    assert facts["tokens_per_scale"] == [1, 4, 9, 16, 9, 35] and facts["width"] == 16
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("options", "method", "tokens"),
    [
        (["--method", "dense"], "dense", [1, 4, 9, 16, 36, 64]),
        (["--method", "draft"], "draft-2", [1, 4, 9, 16, 0, 0]),
        (["--method", "fastvar"], "fastvar", [1, 4, 9, 16, 18, 16]),
        (["--bounds", "90,60,30"], "moss3", [1, 4, 9, 5, 11, 19]),
        (["--negative", "a cat", "--batch", "2"], "moss2", [1, 4, 9, 16, 9, 35]),
    ],
)
def test_every_method_draws(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], method: str,
    tokens: list[int],
):
    facts = generate(model, tmp_path, capsys, *options)
    assert (facts["method"], facts["tokens_per_scale"]) == (method, tokens)


def test_maps_explain_the_picture(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    generate(model, tmp_path, capsys, "--maps", str(tmp_path / "maps"))
    written = {path.name for path in (tmp_path / "maps").iterdir()}
    assert {"frequency.png", "dispatch.png", "poster.png", "scale_03.png"} <= written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--aspect", "16:9"], "128 x 128 pictures only"),
        (["--method", "moss4"], "the paper has no bounds of moss4 for this model; choose moss2"),
        (["--bounds", "50,50,50,50,50,50"], "leave no scale"),
    ],
)
def test_what_it_cannot_draw_is_refused_before_anything_is_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
):
    assert (
        cli.main(["generate", "a star", "--model", str(model), "-o", str(tmp_path / "a.png"), *options]) == 2
    )
    assert message in capsys.readouterr().err and not (tmp_path / "a.png").exists()


def test_models_lists_it_and_convert_rewrites_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["models", "--models", str(model.parent), "--json"]) == 0
    listed = {status["name"]: status for status in json.loads(capsys.readouterr().out)}
    assert listed["hart-0.7b"]["missing"] == []

    assert (
        cli.main(["convert", str(model / "llm" / "ema_model.bin"), str(tmp_path / "a.safetensors"), "--bf16"])
        == 0
    )
    assert 0 < (tmp_path / "a.safetensors").stat().st_size < (model / "llm" / "ema_model.bin").stat().st_size


def test_verify_compares_the_excerpt(capsys: pytest.CaptureFixture):
    assert cli.main(["verify", str(Path(__file__).parent / "golden_hart"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
