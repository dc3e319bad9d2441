"""The command line: what it writes, prints and refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import tiny_text_dir, tiny_vae
from PIL import Image
from safetensors.torch import load_file, save_file

from comfy_moss import cli, images, request
from comfy_moss.model.sampling import NOISE_ID

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def order(model_dir: Path, tmp_path: Path) -> list[str]:
    """The shortest complete order on the tiny model, writing to `tmp_path / out / a.png`."""
    return [
        "generate", "a red cat", "--model", str(model_dir), "--pixels", "0.06M", "-o",
        str(tmp_path / "out" / "a.png"),
    ]


def _written(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").rglob("*"))


def _pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)


def _fails(capsys: pytest.CaptureFixture, tmp_path: Path, argv: list[str], message: str) -> None:
    """One line on stderr that says `message`, nothing on stdout, exit code 2, nothing written."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert out == "" and _written(tmp_path) == []


# --- what it does -------------------------------------------------------------------------------------------


def test_one_picture_is_written_and_named(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(order) == 0
    out, err = capsys.readouterr()
    assert _written(tmp_path) == ["a.png"] and err == ""
    assert out.splitlines()[0] == str(tmp_path / "out" / "a.png")
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert picture.size == (32, 32)  # 16 tokens of stride 2
    assert "moss4" in out


def test_a_cache_in_8_bits_is_smaller_told_in_the_recipe_and_drawn_again_from_it(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found = {}
    for kind in ("full", "int8"):
        assert cli.main([*order, "--json", "--kv-cache", kind]) == 0
        found[kind] = json.loads(capsys.readouterr().out)
    sizes = [found[kind]["kv_bytes"] for kind in ("full", "int8")]
    assert sizes[1] * 64 == sizes[0] * (16 + 4)  # of a head of 16 numbers
    recipe = images.read_recipe(tmp_path / "out" / "a.png")
    assert recipe["kv_cache"] == found["int8"]["kv_cache"] == "int8" and "kv_cache" not in found["full"]
    before = _pixels(tmp_path / "out" / "a.png")
    recipe["model"] = order[3]
    command, *rest = request.arguments(recipe)
    assert cli.main([command, "-o", str(tmp_path / "out" / "b.png"), *rest]) == 0
    assert torch.equal(_pixels(tmp_path / "out" / "b.png"), before)


@pytest.mark.parametrize(
    ("options", "label", "refined"),
    [
        ([], "moss4", True), (["--bounds", "40,20"], "moss2", True), (["--bounds", "40"], "moss1", True),
        (["--skip", "2"], "draft-2", False), (["--method", "dense"], "dense", False),
        (["--method", "fastvar"], "fastvar", False),
    ],
)
def test_json_tells_what_was_done_and_what_it_cost(
    order: list[str], capsys: pytest.CaptureFixture, options: list[str], label: str, refined: bool
) -> None:
    assert cli.main([*order, *options, "--json", "--seed", "5"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["method"] == label and facts["seeds"] == [5] and facts["noise"] == NOISE_ID
    assert len(facts["tokens_per_scale"]) == len(facts["grids"]) == 7
    assert (facts["refine_tokens"] > 0) == refined and facts["kv_bytes"] > 0
    parts = sum(seconds for stage, seconds in facts["seconds"].items() if stage != "total")
    assert parts == pytest.approx(facts["seconds"]["total"], abs=1e-4)


def test_a_recipe_read_from_a_picture_draws_it_again(
    order: list[str], model_dir: Path, tmp_path: Path
) -> None:
    first, again = tmp_path / "out" / "a.png", tmp_path / "again.png"
    options = [
        "--seed", "9", "--aspect", "2:3", "--bounds", "70.5,30", "--cfg", "2.5", "--tau", "0.7", "--negative",
        "a dog",
    ]
    assert cli.main([*order, *options, "--no-cssa", "--strength", "0.5", "--window", "5"]) == 0
    recipe = images.read_recipe(first)
    line = request.arguments({**recipe, "model": str(model_dir)})
    assert cli.main([line[0], "-o", str(again), *line[1:]]) == 0
    assert torch.equal(_pixels(first), _pixels(again))
    assert images.read_recipe(again) == recipe
    assert (
        recipe["bounds"] == [70.5, 30.0]
        and recipe["negative"] == "a dog"
        and recipe["torch"] == torch.__version__
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [("--cfg 1", True), ("--cfg 2", False), ("--cfg 2 --plan=draft-2|cfg|1;-1@40", True)],
)
def test_a_negative_prompt_that_changes_nothing_is_told(
    order: list[str], options: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("|", " ") for word in options.split()]
    assert cli.main([*order, "--negative", "a dog", *words]) == 0
    out, err = capsys.readouterr()
    assert ("note: The negative prompt changes nothing" in err) == told == (", cfg 1:" in out)


@pytest.mark.parametrize("prompt", ["caf\u00e9 \u732b \U0001f431", '-a "quoted"\nprompt'])
def test_prompts_in_any_script_survive_in_the_metadata(order: list[str], tmp_path: Path, prompt: str) -> None:
    assert cli.main([order[0], *order[2:], "--", prompt]) == 0
    assert images.read_recipe(tmp_path / "out" / "a.png")["prompt"] == prompt


def test_the_metadata_does_not_tell_where_the_model_lies(
    order: list[str], model_dir: Path, tmp_path: Path
) -> None:
    cli.main(order)
    assert str(model_dir.parent) not in json.dumps(images.read_recipe(tmp_path / "out" / "a.png"))


def test_the_metadata_leaves_comfyuis_own_names_alone(order: list[str], tmp_path: Path) -> None:
    cli.main(order)
    assert set(Image.open(tmp_path / "out" / "a.png").text) == {"moss"}


def test_a_batch_of_four_equals_four_single_runs(order: list[str], tmp_path: Path) -> None:
    assert cli.main([*order, "--batch", "4", "--seed", "20"]) == 0
    assert _written(tmp_path) == [f"a_{n}.png" for n in range(4)]
    for n in range(4):
        assert cli.main([*order, "--seed", str(20 + n), "-o", str(tmp_path / "one.png")]) == 0
        together, alone = tmp_path / "out" / f"a_{n}.png", tmp_path / "one.png"
        # sums in another order may round elsewhere
        assert (_pixels(together).int() - _pixels(alone).int()).abs().max() <= 1
        assert images.read_recipe(together) == images.read_recipe(alone)


def test_maps_hold_everything_that_explains_a_picture(order: list[str], tmp_path: Path) -> None:
    assert cli.main([*order, "--maps", str(tmp_path / "maps")]) == 0
    scales = [f"scale_{n:02d}.png" for n in (0, 1, 2, 6)]
    names = ["dispatch.png", "draft.png", "frequency.png", "poster.png", "result.png", *scales]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == names
    assert torch.equal(_pixels(tmp_path / "maps" / "result.png"), _pixels(tmp_path / "out" / "a.png"))
    assert torch.equal(_pixels(tmp_path / "maps" / "draft.png"), _pixels(tmp_path / "maps" / "scale_02.png"))


def test_maps_of_the_dense_method_hold_its_scales(order: list[str], tmp_path: Path) -> None:
    assert cli.main([*order, "--method", "dense", "--maps", str(tmp_path / "maps")]) == 0
    assert len(list((tmp_path / "maps").iterdir())) == 7 + 1


def test_pictures_are_cut_off_to_eight_bits_like_the_hosts() -> None:
    levels = torch.tensor([-1.0, -0.001, 0.0, 0.999, 1.0])
    pictures = levels.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert images.to_bytes(images.to_image(pictures))[0, 0, :, 0].tolist() == [0, 127, 127, 254, 255]


# --- what it refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bounds", "10,30"], "bounds must fall"),
        (["--bounds", "nan"], "percentages"),
        (["--bounds", "ten"], "'ten' is not a number"),
        (["--bounds", "50,50,50,50,50,50,50"], "7 refine scales leave no scale for the draft"),
        (["--skip", "7"], "skipping 7 scales leaves nothing to draw"),
        (["--skip", "1", "--method", "dense"], "skip belongs to the method draft"),
        (["--method", "best"], "method 'best' is unknown"),
        (["--tau", "-1"], "tau (temperature) must be above 0"),
        (["--tau", "0"], "tau (temperature) must be above 0"),
        (["--cfg", "-2"], "cfg (guidance) must be 0 or more"),
        (["--cfg", "3,3"], "cfg lists 2 values but the schedule has 7 scales"),
        (["--strength", "2"], "strength must lie between 0 and 1"),
        (["--window", "2"], "window must be odd"),
        (["--aspect", "wide"], "'wide' is not a ratio"),
        (["--aspect", "9:1"], "too extreme"),
        (["--pixels", "2M"], "the image area '2M' is unknown"),
        (["--batch", "0"], "at least 1 picture"),
        (["--seed", "-1"], "seeds lie between"),
        (["--seed", "18446744073709551615", "--batch", "2"], "seeds lie between"),
        (["--seed", "x"], "is no whole number"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--no-such-option"], "unrecognized arguments"),
        (["-o", "picture.jpg"], "PNG"),
    ],
)
def test_wrong_orders_are_refused_before_the_model_is_loaded(
    order: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(request, "load", lambda _job: pytest.fail("the model was loaded"))
    _fails(capsys, tmp_path, [*order, *options], message)


@pytest.mark.parametrize("prompt", ["", "  \n\t", "\udc80"])
def test_a_prompt_without_text_is_refused(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, prompt: str
) -> None:
    _fails(capsys, tmp_path, [order[0], prompt, *order[2:]], "the prompt")


def test_a_prompt_of_ten_thousand_characters_is_refused(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _fails(capsys, tmp_path, [order[0], "cat " * 2500, *order[2:]], "2501 tokens")


def test_an_output_below_a_file_is_refused(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    _fails(capsys, tmp_path, [*order, "--maps", str(tmp_path / "file" / "maps")], "nothing can be written")
    _fails(capsys, tmp_path, [*order, "-o", str(tmp_path / "file" / "a.png")], "nothing can be written")


@pytest.fixture
def broken(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model whose files may be changed."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("transformer.safetensors", "vae.safetensors"):
        (folder / name).write_bytes((model_dir / name).read_bytes())
    (folder / "text").symlink_to(model_dir / "text")
    return folder


def test_a_vae_of_another_model_is_refused(
    order: list[str], broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_file(tiny_vae(channels=12).state_dict(), broken / "vae.safetensors")
    _fails(capsys, tmp_path, [*order, "--model", str(broken)], "does not belong to")


def test_a_truncated_file_is_refused(
    order: list[str], broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = broken / "transformer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    _fails(capsys, tmp_path, [*order, "--model", str(broken)], "transformer.safetensors")


def test_a_missing_file_is_refused(
    order: list[str], broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (broken / "vae.safetensors").unlink()
    _fails(capsys, tmp_path, [*order, "--model", str(broken)], "vae.safetensors")


def test_a_pickle_with_code_is_refused_and_not_run(
    order: list[str], broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    marker = tmp_path / "ran"
    (broken / "transformer.safetensors").unlink()
    torch.save(
        {"word_embed.weight": torch.zeros(1), "x": _Touch(str(marker))}, broken / "infinity_2b_reg.pth"
    )

    _fails(capsys, tmp_path, [*order, "--model", str(broken)], "infinity_2b_reg.pth")

    assert not marker.exists()


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_a_text_encoder_of_another_width_is_refused(
    order: list[str], broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (broken / "text").unlink()
    tiny_text_dir(broken / "text", width=48)
    capsys.readouterr()  # transformers' progress bar
    _fails(capsys, tmp_path, [*order, "--model", str(broken)], "48")


def test_weights_that_are_not_numbers_are_refused(
    order: list[str], broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    weights = load_file(broken / "transformer.safetensors")
    weights["head.weight"][0, 0] = torch.nan
    save_file(weights, broken / "transformer.safetensors")
    _fails(capsys, tmp_path, [*order, "--model", str(broken)], "head.weight")


def test_an_interruption_leaves_nothing_behind(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # the last moment: all is written under other names
    monkeypatch.setattr("pathlib.Path.replace", interrupt)
    assert cli.main([*order, "--batch", "2"]) == 130
    assert _written(tmp_path) == [] and capsys.readouterr().err == "error: interrupted\n"


def test_a_full_disk_leaves_nothing_behind(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    _fails(capsys, tmp_path, order, "No space left on device")


def test_too_little_memory_is_said_in_one_sentence(
    order: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_checked: request.Checked) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(request, "load", load)
    _fails(capsys, tmp_path, order, "too little memory")


def test_errors_of_our_own_making_are_not_hidden(order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_checked: request.Checked) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(request, "load", load)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cli.main(order)


def test_a_picture_without_a_recipe_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("plain.png", "text.png"):
        with pytest.raises(ValueError, match="holds no recipe"):
            images.read_recipe(tmp_path / name)


# --- the program as a whole ---------------------------------------------------------------------------------


def _run(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_program_draws_from_the_repository_root(order: list[str], tmp_path: Path) -> None:
    """There the folder `kernels/` lies beside the package, where transformers must not see it."""
    done = _run("-m", "comfy_moss", *order, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["files"] == [str(tmp_path / "out" / "a.png")]
    assert _written(tmp_path) == ["a.png"]


def test_help_is_instant_and_the_root_is_off_the_path() -> None:
    script = """
import importlib.util, runpy, sys
sys.argv = ["comfy_moss", "generate", "--help"]
try:
    runpy.run_module("comfy_moss", run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules, importlib.util.find_spec("kernels"))
"""
    done = _run("-c", script)
    assert done.stdout.splitlines()[-1] == "0 False None", done.stderr


@pytest.mark.parametrize("command", cli.LABORATORY)
def test_the_laboratory_is_found_beside_the_package_and_its_help_is_instant(command: str) -> None:
    script = f"""
import runpy, sys
sys.argv = ["comfy_moss", "{command}", "--help"]
try:
    runpy.run_module("comfy_moss", run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = _run("-c", script)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


@pytest.mark.parametrize("command", cli.LABORATORY)
def test_without_the_laboratory_its_commands_say_where_it_is_and_the_others_work(
    command: str, tmp_path: Path
) -> None:
    """As the registry hands the pack out: benchmarks/ is missing."""
    shutil.copytree(
        ROOT / "comfy_moss", tmp_path / "comfy_moss", ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    done = _run("-m", "comfy_moss", command, "--shape", "2b", "something", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert command in done.stderr and "clone of the repository" in done.stderr
    assert _run("-m", "comfy_moss", "--help", cwd=tmp_path).returncode == 0


def test_models_lists_what_is_missing(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MOSS_MODELS", raising=False)
    assert cli.main(["models", "--models", str(model_dir), "--json"]) == 0
    found = {status["name"]: status["missing"] for status in json.loads(capsys.readouterr().out)}
    assert found[str(model_dir)] == []
    assert found["2b"] == ["infinity_2b_reg.pth", "infinity_vae_d32reg.pth", "flan-t5-xl"]
    assert cli.main(["models"]) == 0
    assert "infinity_vae_d32reg.pth" in capsys.readouterr().out


def test_convert_writes_a_file_that_draws(order: list[str], broken: Path, tmp_path: Path) -> None:
    weights, old = broken / "transformer.safetensors", broken / "old.safetensors"
    weights.rename(old)
    assert cli.main(["convert", str(old), str(weights)]) == 0
    old.unlink()
    assert cli.main([*order, "--model", str(broken)]) == 0


def test_verify_of_a_folder_without_manifest_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _fails(capsys, tmp_path, ["verify", str(tmp_path)], "manifest.json")
