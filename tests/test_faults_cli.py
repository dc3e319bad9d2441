"""The command line as people use it: consoles of every encoding, values in every notation, one meaning of a
number.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from comfy_moss import cli
from comfy_moss.request import Request, check

ROOT = Path(__file__).resolve().parent.parent
CHINESE = "一个红色的圆 🔴"


@pytest.mark.parametrize(
    "encoding",
    [
        "cp1252",
        "ascii",
        "cp437",
        "cp932",
        "gbk",
        "latin-1",
        "utf-8",
        "utf-16",
        "utf-8:strict",
        "cp1252:strict",
    ],
)
def test_a_json_reaches_a_console_of_any_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding.partition(":")[0], errors="strict", newline="")
    monkeypatch.setattr(sys, "stdout", out)
    cli._tolerate(out)
    cli._print_json({"prompt": CHINESE, "path": "caf\u00e9", "broken": "\udce9"})
    out.flush()
    assert json.loads(out.buffer.getvalue().decode(out.encoding))["prompt"] == CHINESE


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
def test_a_sentence_reaches_such_a_console_too(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["generate", "a star", "--model", CHINESE]) == 2
    err.flush()
    assert b"there is no model" in err.buffer.getvalue()


def test_a_chinese_prompt_is_drawn_into_a_pipe_of_windows(tmp_path: Path) -> None:
    order = [
        "generate",
        CHINESE,
        "--pixels",
        "0.06M",
        "--method",
        "draft",
        "--json",
        "-o",
        str(tmp_path / "圆.png"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "comfy_moss", *order],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == CHINESE and (tmp_path / "圆.png").is_file()


def test_a_console_that_is_not_there_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw on Windows, where both streams are None."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["models"]) == 0


# --- 15 and 20: values --------------------------------------------------------------------------------------


def checked(*options: str, tmp_path: Path = Path(".")) -> object:
    return check(Request.of(cli._parser().parse_args(["generate", "a red circle", *options])))


def test_cfg_0_means_the_models_own_as_in_the_nodes() -> None:
    own = checked()
    assert checked("--cfg", "0").guidance == checked("--cfg", "0.0").guidance == own.guidance
    assert own.guidance.cfg == own.files.cfg
    with pytest.raises(
        ValueError, match="has a 0, which would leave the prompt out; write 1 for no guidance"
    ):
        checked("--cfg", "3,3,3,0,3,3,3,3,3,3")


@pytest.mark.parametrize(
    ("plain", "typed"),
    [
        (["--bounds", "60,30"], ["--bounds", "60 30"]),
        (["--bounds", "60,30"], ["--bounds", "[60%; 30%]"]),
        (["--bounds", "60,30"], ["--bounds", "60，30"]),
        (["--aspect", "16:9"], ["--aspect", "1920x1080"]),
        (["--aspect", "2:3"], ["--aspect", "2/3"]),
        (["--method", "moss3"], ["--method", "MoSs-3"]),
        (["--method", "dense"], ["--method", "Dense"]),
        (["--pixels", "0.06M"], ["--pixels", "0.06 m"]),
        (["--pixels", "1M"], ["--pixels", "1MP"]),
        (["--pixels", "0.60M"], ["--pixels", "0.6M"]),
        (["--seed", "1000"], ["--seed", "1e3"]),
        (["--device", "cpu"], ["--device", " CPU"]),
        (["--precision", "bf16"], ["--precision", "BFloat16"]),
        (["--precision", "fp32"], ["--precision", "float32"]),
        (["--model", "nano"], ["--model", " Nano"]),
        (["--cfg", "2.5"], ["--cfg", "2.5 "]),
    ],
)
def test_notations_mean_the_same(plain: list[str], typed: list[str]) -> None:
    one, two = checked(*plain), checked(*typed)
    assert (one.method, one.schedule, one.guidance, one.pixels, one.device, one.dtype, one.request.seeds) == (
        two.method,
        two.schedule,
        two.guidance,
        two.pixels,
        two.device,
        two.dtype,
        two.request.seeds,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bounds", "0.6,0.3"], "looks like fractions; write percentages"),
        (["--aspect", "1.78"], "does not say which side"),
        (["--aspect", "16:9:1"], "is not a ratio"),
        (["--seed", "4.5"], "no whole number"),
        (["--seed", "-1"], "seeds lie between"),
        (["--cfg", "3,5"], "cfg lists 2 values"),
        (["--pixels", "1024"], "image area '1024' is unknown"),
        (["--precision", "fp8"], "the precision 'fp8' is unknown"),
        (["--method", "mass"], "method 'mass' is unknown"),
        (["--bounds", "80,5;70,2"], "mixes commas and semicolons"),
        (["--device", "npu9"], "cannot be used here"),
        (["-o", "x" * 300 + ".png"], "cannot be written"),
        (["--maps", "x" * 300], "cannot be written|nothing can be written"),
        (["-o", " "], "no name of a file or folder"),
        (["--strength", "nan"], "strength must lie"),
    ],
)
def test_what_is_not_understood_is_refused_in_a_sentence(options: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        checked(*options)
    assert len(str(caught.value)) < 400
