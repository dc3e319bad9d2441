"""The command `edit`: pictures in, pictures out, and recipes that stay honest about what they were drawn
from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import WORDS
from PIL import Image

from comfy_moss import cli
from comfy_moss.images import read_recipe, to_bytes, to_image
from comfy_moss.model.library import find_model
from comfy_moss.pipeline.source import encode_picture
from comfy_moss.request import arguments

CAT, DOG = "a red cat", "a blue dog"
assert set(f"{CAT} {DOG}".split()) <= set(WORDS)


@pytest.fixture(scope="module")
def side(model_dir: Path) -> int:
    return 16 * find_model(str(model_dir), []).load().stride


@pytest.fixture
def files(tmp_path: Path, side: int) -> dict[str, Path]:
    """A picture of the drawn size, another one of another shape, and a mask of the first one's corner."""
    made = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 2, : side // 2] = 255
    pictures = {"picture": made, "wide": made.repeat(2, axis=1)[: side // 2], "mask": mask}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in pictures}


@pytest.fixture
def edit(model_dir: Path, tmp_path: Path, files: dict[str, Path]):
    """A function that edits, and returns the exit code and the picture's path."""
    fixed = ("--model", str(model_dir), "--pixels", "0.06M", "--precision", "fp32")

    def run(*words: Any, name: str = "out", picture: str = "picture", prompt: str = CAT) -> tuple[int, Path]:
        path = tmp_path / f"{name}.png"
        typed = ["edit", str(files[picture]), prompt, *fixed, *map(str, words), "-o", str(path)]
        return cli.main(typed), path

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


MODES = {
    "redraw": ("--strength", "2"), "inpaint": ("--mask", "mask"),
    "edit": ("--source", DOG, "--rule", "shift"),
    "refine": ("--mode", "refine"), "masked edit": ("--source", DOG, "--mask", "mask"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_is_drawn_again_from_its_recipe_and_the_same_file(
    mode: str, edit, files: dict[str, Path], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(files["mask"]) if word == "mask" else word for word in MODES[mode]]
    code, path = edit(*words, "--seed", 3, "--maps", tmp_path / "maps")
    assert code == 0 and (tmp_path / "maps" / "poster.png").is_file()

    recipe = read_recipe(path)
    assert recipe["edit"]["picture"] == "picture.png" and str(tmp_path) not in json.dumps(recipe)
    monkeypatch.chdir(tmp_path)
    again = [*arguments(recipe | {"model": str(model_dir)})]
    assert cli.main([again[0], "-o", "again.png", *again[1:]]) == 0
    assert (pixels(tmp_path / "again.png") == pixels(path)).all()
    assert read_recipe(tmp_path / "again.png") == recipe


def test_another_picture_than_the_recipes_is_refused(
    edit, files: dict[str, Path], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    _, path = edit("--strength", "2")
    again = arguments(read_recipe(path) | {"model": str(model_dir)})
    monkeypatch.chdir(tmp_path)
    Image.fromarray((255 - pixels(files["picture"])).astype(np.uint8)).save(files["picture"])
    assert cli.main([again[0], "-o", "again.png", *again[1:]]) == 2
    assert "is not the one that the recipe was drawn from" in capsys.readouterr().err
    assert not (tmp_path / "again.png").exists()


def test_all_scales_are_the_codecs_reconstruction(edit, model_dir: Path, files: dict[str, Path]) -> None:
    _, path = edit("--strength", 7, "--method", "dense")
    model = find_model(str(model_dir), [])
    backbone, schedule = model.load(), model.schedule(1.0, "0.06M")
    image = torch.from_numpy(pixels(files["picture"])).float()[None] / 255
    total = 0
    for scale, bits in enumerate(encode_picture(backbone, image, schedule).bits):
        total = total + backbone.code_map(backbone.codes(bits), scale, schedule)
    with torch.inference_mode():
        expected = to_bytes(to_image(backbone.decode(total)))[0].numpy()
    assert abs(pixels(path) - expected).max() <= 1


def test_a_picture_of_another_shape_decides_the_ratio(edit, capsys) -> None:
    code, path = edit("--strength", 2, "--fit", "pad", "--json", picture="wide")
    told = json.loads(capsys.readouterr().out)
    assert code == 0 and told["width"] > 1.8 * told["height"]
    assert told["edit"]["mode"] == "redraw" and told["edit"]["fit"] == "pad"


def test_the_budget_says_how_many_masked_tokens_were_redrawn(edit, files: dict[str, Path], capsys) -> None:
    edit("--mask", files["mask"], "--plan", "draft-1; -1@100", "--json")
    masked = json.loads(capsys.readouterr().out)
    edit("--strength", 0, "--plan", "draft-1; -1@100", "--json")
    whole = json.loads(capsys.readouterr().out)
    assert masked["refine_tokens"] == whole["refine_tokens"] / 4
    assert masked["tokens_per_scale"][-1] == masked["refine_tokens"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "inpaint"), "inpainting needs a mask"),
        (("--mode", "edit"), "an edit needs the prompt that the picture is of"),
        (("--source", CAT), "both prompts are the same"),
        (("--source", DOG, "--mode", "refine"), "--source belongs to the mode edit"),
        (("--strength", "8"), "the strength is 8 scales, but this picture has 7"),
        (("--strength", "-1"), "0 or more, got -1"),
        (("--mask", "wide"), "use a mask of the picture's size"),
        (("--mask", "nothing"), "nothing.png"),
        (("--mode", "paint"), "choose one of redraw, inpaint, edit, refine"),
        (("--source", DOG, "--follow", "0"), "preserve must lie between 0 and follow"),
        (("--source", DOG, "--method", "fastvar"), "an edit by words cannot be drawn by fastvar"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    words: tuple[str, ...], message: str, edit, files: dict[str, Path], tmp_path: Path, capsys
) -> None:
    paths = {**files, "nothing": tmp_path / "nothing.png"}
    code, path = edit(*(paths.get(word, word) for word in words))
    told = capsys.readouterr().err
    assert code == 2 and message in told and told.count("\n") == 1 and not path.exists()


def test_a_file_that_is_no_picture_and_a_black_mask_are_told(edit, files: dict[str, Path], capsys) -> None:
    with Image.open(files["mask"]) as mask:
        black = Image.new("L", mask.size)
    black.save(files["mask"])
    assert edit("--mask", files["mask"])[0] == 2
    assert "is black everywhere" in capsys.readouterr().err
    files["picture"].write_bytes(b"\x89PNG nothing")
    assert edit()[0] == 2
    assert "is no picture that can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [3, {"picture": 5}, {"picture": "a", "taken": "x"}, {"picture": "a", "sha256": 1}]
)
def test_a_damaged_recipe_is_told(wrong: Any) -> None:
    with pytest.raises(ValueError, match="its edit is .*; use another picture"):
        arguments({"prompt": CAT, "plan": "dense", "edit": wrong})
