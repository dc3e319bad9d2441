"""Benchmark exports: what the scorers find, going on after an interruption, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from comfy_moss import cli
from comfy_moss.benchmarks import export
from comfy_moss.images import read_recipe
from comfy_moss.model.backbone import Backbone
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.plan import Method, Picture

TEXTS = ["a red cat", "two dogs"]
SIDE = 32  # pixels of a picture of the tiny model


def _geneval(folder: Path) -> Path:
    path = folder / "evaluation_metadata.jsonl"
    lines = [{"tag": "colors", "include": [{"class": "cat", "count": 1}], "prompt": text} for text in TEXTS]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def _dpg(folder: Path) -> Path:
    prompts = folder / "prompts"
    prompts.mkdir()
    for name, text in zip(("256", "COCOval2"), TEXTS, strict=True):
        (prompts / f"{name}.txt").write_text(text + "\n")
    return prompts


def _hpsv2(folder: Path) -> Path:
    path = folder / "all.json"
    path.write_text(json.dumps({"anime": TEXTS, "concept-art": TEXTS[:1]}))
    return path


def _imagereward(folder: Path) -> Path:
    path = folder / "benchmark-prompts.json"
    path.write_text(json.dumps([{"id": "000904-0035", "prompt": TEXTS[0]}, {"id": 7, "prompt": TEXTS[1]}]))
    return path


PROMPTS = {"geneval": _geneval, "dpg": _dpg, "hpsv2": _hpsv2, "imagereward": _imagereward}
Line = Callable[..., list[str]]


def _tiny(model_dir: Path) -> list[str]:
    return ["--model", str(model_dir), "--pixels", "0.06M", "--precision", "fp32"]


@pytest.fixture
def line(model_dir: Path, tmp_path: Path) -> Line:
    """suite, options -> the command line that exports that suite's two or three prompts to tmp_path / out."""

    def build(suite: str, *options: str) -> list[str]:
        folder = tmp_path / f"{suite}_prompts"
        if not folder.exists():
            folder.mkdir()
            PROMPTS[suite](folder)
        prompts = next(folder.iterdir())
        where = ["--prompts", str(prompts), "--out", str(tmp_path / "out")]
        return ["export", suite, *where, *_tiny(model_dir), *options]

    return build


def _files(tmp_path: Path) -> dict[str, bytes]:
    out = tmp_path / "out"
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _note(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "moss.json").read_text())


# --- the layouts --------------------------------------------------------------------------------------------


def test_geneval_finds_numbered_folders_with_samples_and_the_prompts_own_line(
    line: Line, tmp_path: Path
) -> None:
    assert cli.main(line("geneval", "--batch", "3")) == 0
    images = [f"images/{n:05d}/samples/{m:04d}.png" for n in range(2) for m in range(4)]
    beside = [f"images/{n:05d}/metadata.jsonl" for n in range(2)]
    assert sorted(_files(tmp_path)) == sorted([*images, *beside, "moss.json"])
    record = json.loads((tmp_path / "out" / beside[1]).read_text())
    assert record["prompt"] == TEXTS[1] and record["include"] == [{"class": "cat", "count": 1}]


def test_dpg_bench_finds_grids_of_four_tiles_in_raster_order(
    line: Line, tmp_path: Path, model_dir: Path
) -> None:
    assert cli.main(line("dpg", "--seed", "5")) == 0
    assert sorted(_files(tmp_path)) == ["images/256.png", "images/COCOval2.png", "moss.json"]
    with Image.open(tmp_path / "out" / "images" / "256.png") as grid:
        assert grid.size == (2 * SIDE, 2 * SIDE)
        lower_left = grid.crop((0, SIDE, SIDE, 2 * SIDE)).tobytes()
    assert (
        cli.main(["generate", TEXTS[0], "--seed", "7", *_tiny(model_dir), "-o", str(tmp_path / "a.png")]) == 0
    )
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.tobytes() == lower_left


def test_hpsv2_finds_one_jpeg_a_prompt_by_style(line: Line, tmp_path: Path) -> None:
    assert cli.main(line("hpsv2")) == 0
    styles = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert styles == ["anime", "concept-art"]  # its scorer takes every entry for a style
    pictures = sorted(name for name in _files(tmp_path) if name != "moss.json")
    assert pictures == ["images/anime/00000.jpg", "images/anime/00001.jpg", "images/concept-art/00000.jpg"]
    with Image.open(tmp_path / "out" / pictures[0]) as picture:
        assert picture.format == "JPEG" and picture.size == (SIDE, SIDE)


def test_imagereward_finds_numbered_pictures_by_id_and_infinitys_list_names_them(
    line: Line, tmp_path: Path
) -> None:
    assert cli.main(line("imagereward", "--per-prompt", "2", "--batch", "4")) == 0
    pictures = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert pictures == [
        "000904-0035_0.png",
        "000904-0035_1.png",
        "7_0.png",
        "7_1.png",
    ]  # its scorer counts them
    entries = json.loads((tmp_path / "out" / "metadata.jsonl").read_text())
    assert [(entry["id"], entry["prompt"]) for entry in entries] == [("000904-0035", TEXTS[0]), (7, TEXTS[1])]
    assert entries[1]["gen_image_paths"] == ["images/7_0.png", "images/7_1.png"]
    assert all((tmp_path / "out" / path).is_file() for entry in entries for path in entry["gen_image_paths"])


def test_a_style_of_its_own_file_or_a_folder_of_them_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "anime.json").write_text(json.dumps(TEXTS))
    (tmp_path / "photo.json").write_text(json.dumps(TEXTS[:1]))
    alone, folder = export.read_hpsv2(tmp_path / "anime.json"), export.read_hpsv2(tmp_path)
    assert [(p.folder, p.name, p.text) for p in alone.items] == [
        ("anime", "00000", TEXTS[0]),
        ("anime", "00001", TEXTS[1]),
    ]
    assert [p.folder for p in folder.items] == ["anime", "anime", "photo"]


def test_a_line_separator_inside_a_prompt_is_no_new_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert [p.text for p in export.read_geneval(tmp_path / "a.jsonl").items] == ["a\u2028b"]


# --- what made them -----------------------------------------------------------------------------------------


def test_the_note_holds_all_that_decides_the_pictures(line: Line, tmp_path: Path) -> None:
    assert cli.main(line("hpsv2", "--seed", "3", "--cfg", "2", "--tau", "0.7", "--bounds", "40,20")) == 0
    note = _note(tmp_path)
    wanted = {
        "suite": "hpsv2",
        "seed": 3,
        "cfg": 2.0,
        "tau": 0.7,
        "method": "moss",
        "bounds": [40.0, 20.0],
        "per_prompt": 1,
    }
    assert {name: note[name] for name in wanted} == wanted
    assert (
        len(note["model_id"]) >= 8
        and len(note["prompts_sha256"]) == 64
        and note["version"]
        and "prompt" not in note
    )


def test_a_pictures_own_recipe_names_its_prompt_and_seed(line: Line, tmp_path: Path) -> None:
    assert cli.main(line("geneval", "--seed", "10", "--batch", "5")) == 0
    recipe = read_recipe(tmp_path / "out" / "images" / "00001" / "samples" / "0002.png")
    assert (recipe["prompt"], recipe["seed"]) == (TEXTS[1], 12)


@pytest.mark.parametrize("batch", ["1", "3"])
def test_the_batch_does_not_change_the_pictures(line: Line, tmp_path: Path, batch: str) -> None:
    assert cli.main(line("imagereward", "--per-prompt", "2", "--batch", "4")) == 0
    together = _pixels(tmp_path)
    assert (
        cli.main(line("imagereward", "--per-prompt", "2", "--batch", batch, "--out", str(tmp_path / "other")))
        == 0
    )
    apart = _pixels(tmp_path, "other")
    assert (together - apart).abs().max() <= 1  # sums in another order may round elsewhere
    assert len({tuple(row) for row in together.tolist()}) == 4


def _pixels(tmp_path: Path, out: str = "out") -> torch.Tensor:
    """All pictures, one a row, by name."""
    rows = [Image.open(path).tobytes() for path in sorted((tmp_path / out / "images").iterdir())]
    return torch.stack([torch.frombuffer(bytearray(row), dtype=torch.uint8) for row in rows]).int()


# --- going on -----------------------------------------------------------------------------------------------


def test_an_interrupted_export_goes_on_where_it_stopped(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    generate, drawn = export.generate, []

    def interrupted(backbone: Backbone, recipe: Recipe, method: Method) -> Picture:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.extend(recipe.seeds)
        return generate(backbone, recipe, method)

    monkeypatch.setattr(export, "generate", interrupted)
    assert cli.main(line("geneval")) == 130
    before = _files(tmp_path)
    assert len([name for name in before if name.endswith(".png")]) == 3
    assert not [name for name in before if name.endswith(".part")]

    drawn.clear()
    monkeypatch.setattr(
        export, "generate", lambda b, recipe, m: drawn.extend(recipe.seeds) or generate(b, recipe, m)
    )
    assert cli.main(line("geneval")) == 0
    assert drawn == [3, 0, 1, 2, 3]  # the fourth of the first prompt, then the second prompt
    assert before.items() <= _files(tmp_path).items()
    assert "GenEval: 5\n" in capsys.readouterr().out


def test_nothing_is_loaded_where_nothing_is_missing(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(line("hpsv2")) == 0
    monkeypatch.setattr(export, "load", lambda *_: pytest.fail("the model was loaded"))
    assert cli.main(line("hpsv2")) == 0


def test_a_picture_that_broke_off_is_drawn_again(line: Line, tmp_path: Path) -> None:
    for suite in ("hpsv2", "dpg"):
        out = ["--out", str(tmp_path / "out" / suite)]
        assert cli.main(line(suite, *out)) == 0
        picture = next(path for path in (tmp_path / "out" / suite / "images").rglob("*") if path.is_file())
        whole = picture.read_bytes()
        picture.write_bytes(whole[: len(whole) // 2])
        assert cli.main(line(suite, *out)) == 0
        assert picture.read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--seed", "1"], "seed"), (["--method", "dense"], "method"), (["--cfg", "9"], "cfg"),
        (["--per-prompt", "2"], "per_prompt"),
    ],
)
def test_pictures_of_other_settings_are_not_mixed_in(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], word: str
) -> None:
    assert cli.main(line("imagereward", "--per-prompt", "1")) == 0
    before = _files(tmp_path)
    capsys.readouterr()
    assert (
        cli.main(
            line("imagereward", *(options if "--per-prompt" in options else ["--per-prompt", "1", *options]))
        )
        == 2
    )
    out, err = capsys.readouterr()
    assert (
        out == "" and err.count("\n") == 1 and f"made with {word} " in err and "choose another --out" in err
    )
    assert _files(tmp_path) == before


def test_pictures_of_another_model_are_not_mixed_in(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(line("hpsv2")) == 0
    note = _note(tmp_path) | {"model_id": "another"}
    (tmp_path / "out" / "moss.json").write_text(json.dumps(note))
    (tmp_path / "out" / "images" / "anime" / "00000.jpg").unlink()
    capsys.readouterr()
    assert cli.main(line("hpsv2")) == 2
    assert "made with model_id 'another'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "images" / "anime" / "00000.jpg").exists()


@pytest.mark.parametrize("note", [None, "{", "[1]"])
def test_pictures_of_unknown_making_are_not_mixed_in(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture, note: str | None
) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "0.png").write_text("")
    if note is not None:
        (tmp_path / "out" / "moss.json").write_text(note)
    assert cli.main(line("hpsv2")) == 2
    assert "moss.json" in capsys.readouterr().err and "images/0.png" in _files(tmp_path)


# --- what is refused ----------------------------------------------------------------------------------------

BAD = [
    ("geneval", None, "No such file"),
    ("dpg", None, "No such file"),
    ("hpsv2", None, "No such file"),
    ("geneval", "", "holds no prompts"),
    ("geneval", "a red cat", "line 1 is not JSON"),
    ("geneval", "[]", "entry 0 has no prompt"),
    ("geneval", '{"text": "a"}', "entry 0 has no prompt"),
    ("geneval", '{"prompt": " "}', "entry 0 has no prompt"),
    ("geneval", b"\xff\xfe", "not text"),
    ("dpg", "a red cat", "is no folder"),
    ("hpsv2", "{}", "holds no prompts"),
    ("hpsv2", '{"anime": "a"}', "anime is no list"),
    ("hpsv2", '{"anime": [1]}', "no prompt"),
    ("hpsv2", '{"../up": ["a"]}', "cannot be the name of a file"),
    ("hpsv2", "{", "is not JSON"),
    ("imagereward", "[]", "holds no prompts"),
    ("imagereward", '{"id": 1}', "holds no list"),
    ("imagereward", '[{"prompt": "a"}]', "has no id"),
    ("imagereward", '[{"id": "a/b", "prompt": "a"}]', "cannot be the name"),
    ("imagereward", '[{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}]', "two prompts are called '1'"),
]


@pytest.mark.parametrize(("suite", "content", "message"), BAD)
def test_bad_prompts_are_refused_in_one_sentence(
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    suite: str,
    content: str | bytes | None,
    message: str,
) -> None:
    prompts = tmp_path / "prompts.json"
    if content is not None:
        prompts.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = [
        "export",
        suite,
        "--prompts",
        str(prompts),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(model_dir),
    ]
    assert cli.main(line) == 2
    out, err = capsys.readouterr()
    assert message in err and str(prompts) in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("suite", "options", "message"),
    [
        ("hpsv2", ["--per-prompt", "2"], "HPSv2 takes 1 a prompt"),
        ("dpg", ["--per-prompt", "3"], "DPG-Bench takes 1 or 4 a prompt"),
        ("geneval", ["--per-prompt", "0"], "got --per-prompt 0"),
        ("dpg", ["--aspect", "16:9"], "square"),
        ("geneval", ["--batch", "0"], "at least 1 picture"),
        ("geneval", ["--seed", "18446744073709551614"], "seeds lie between"),
        ("geneval", ["--method", "best"], "method 'best' is unknown"),
    ],
)
def test_wrong_orders_are_refused_before_anything_is_written(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture, suite: str, options: list[str], message: str
) -> None:
    assert cli.main(line(suite, *options)) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_too_long_is_named_and_nothing_is_written(
    line: Line, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = line("hpsv2")
    Path(argv[argv.index("--prompts") + 1]).write_text(json.dumps({"anime": ["a cat", "cat " * 2500]}))
    assert cli.main(argv) == 2
    assert "2501 tokens" in capsys.readouterr().err and not (tmp_path / "out").exists()
