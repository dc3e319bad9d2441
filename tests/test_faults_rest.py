"""Devices that lack an operation, promises about batches, names that no file can have, and pictures of
others.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders import tiny_backbone, tiny_vae
from hart_builders import tiny_tokenizer
from PIL import Image, PngImagePlugin

from comfy_moss.images import KEY, check_writable, png, read_recipe, write_files
from comfy_moss.ops import area_mean

# --- 16: a device without an operation ----------------------------------------------------------------------


@pytest.fixture()
def mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adaptive pooling as Apple's MPS has it: for sizes that divide."""
    real = F.adaptive_avg_pool2d

    def pool(image: torch.Tensor, size: Any) -> torch.Tensor:
        if any(pixels % cells for pixels, cells in zip(image.shape[-2:], size, strict=True)):
            raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes.")
        return real(image, size)

    monkeypatch.setattr(F, "adaptive_avg_pool2d", pool)
    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", pool)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 5, 7), (3, 1, 40, 30), (2, 2, 64, 48), (1, 1, 1)])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (48, 48), (13, 9), (40, 30), (80, 70)])
def test_the_other_way_gives_the_same(request: pytest.FixtureRequest, shape: tuple, grid: tuple) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = F.adaptive_avg_pool2d(image, grid)
    request.getfixturevalue("mps")
    torch.testing.assert_close(area_mean(image, grid), wanted, rtol=0, atol=2e-6)


def test_where_the_device_has_it_nothing_changes() -> None:
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(area_mean(image, (48, 48)), F.adaptive_avg_pool2d(image, (48, 48)))


def test_nothing_pools_past_the_helper() -> None:
    root = Path(__file__).resolve().parent.parent / "comfy_moss"
    found = [
        path.name for path in root.rglob("*.py") if "adaptive_avg_pool2d" in path.read_text(encoding="utf-8")
    ]
    assert found == ["ops.py"]
    area = [path.name for path in root.rglob("*.py") if 'mode="area"' in path.read_text(encoding="utf-8")]
    assert area == []


@pytest.mark.usefixtures("mps")
@pytest.mark.parametrize("name", ["dispatch", "FastVAR", "HART"])
def test_every_method_draws_there(name: str) -> None:
    from comfy_moss.model.schedule import make_schedule
    from comfy_moss.pipeline.dispatch import RefinePass, dispatch_tokens

    if name == "dispatch":
        schedule = make_schedule(1.0, "0.25M")
        frequency = torch.rand(1, *schedule.grids[-1])
        assert (
            dispatch_tokens(frequency, schedule, RefinePass.of_last((60, 30)), torch.rand(1, 9, 9)).counts[0]
            > 0
        )
    elif name == "HART":
        quantizer = tiny_tokenizer().quantize
        assert area_mean(torch.rand(1, quantizer.embedding.weight.shape[1], 8, 8), (3, 3)).shape[-1] == 3
    else:
        assert area_mean(torch.rand(1, 4, 16, 16), (12, 12)).shape[-2:] == (12, 12)


# --- 18: an exact promise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: tiny_vae(mult=(1, 1, 1)), tiny_tokenizer], ids=["Infinity", "HART"])
@pytest.mark.parametrize("size", [(8, 8), (13, 9)])
def test_a_picture_of_a_batch_is_the_same_alone(make: Any, size: tuple) -> None:
    codec = make()
    codes = torch.randn(5, 8, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = codec.decode(codes)
        assert all(torch.equal(together[n : n + 1], codec.decode(codes[n : n + 1])) for n in range(5))
        again = codec.encode(together)
        assert all(torch.equal(again[n : n + 1], codec.encode(together[n : n + 1])) for n in range(5))


def test_the_backbone_decodes_one_by_one() -> None:
    backbone, seen = tiny_backbone(), []
    backbone.vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.inference_mode():
        backbone.decode(torch.randn(3, 8, 4, 4))
    assert seen == [1, 1, 1]


# --- 8: names of files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [255, 251, 250, 200])
def test_names_up_to_what_the_file_system_holds_are_written(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * (length - 4) + ".png")
    check_writable(path)
    write_files({path: b"a"})
    assert path.read_bytes() == b"a" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".png", "é" * 130 + ".png", "a\0b.png", "x" * 300 + "/a.png", "模" * 90 + ".png"]
)
def test_names_that_no_file_can_have_are_told_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be written.*name a file in another folder") as caught:
        check_writable(tmp_path / name)
    assert len(str(caught.value)) < 400


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "a.png", tmp_path / "file" / "b.png"):
        with pytest.raises(ValueError, match="cannot be written"):
            check_writable(path)


def test_of_several_files_none_is_written_where_one_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "b.png").mkdir()
    with pytest.raises(OSError):
        write_files({tmp_path / "a.png": b"a", tmp_path / "b.png": b"b"})
    assert os.listdir(tmp_path) == ["b.png"]


# --- 19: pictures of others ---------------------------------------------------------------------------------


def picture(**text: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for name, value in text.items():
        chunks.add_itxt(name, value)
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


WHOLE = png(torch.zeros(8, 8, 3), {"prompt": "a"})
OTHERS = {
    "cut off": WHOLE[:60], "no PNG": b"GIF89a", "empty": b"",
    "a workflow of the host": picture(prompt="{}", workflow="{}"), "no JSON": picture(**{KEY: "{"}),
    "a list": picture(**{KEY: "[]"}), "a number": picture(**{KEY: "1"}),
    "a wrong length": WHOLE[:8] + b"\xff\xff\xff\xff" + WHOLE[12:],
    "a wrong chunk": WHOLE.replace(b"IDAT", b"IDXX"),
    "a bomb": WHOLE[:16] + (2**30).to_bytes(4, "big") * 2 + WHOLE[24:],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_pictures_without_a_recipe_are_told(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(OTHERS[kind])
    with pytest.raises(
        ValueError, match="a.png holds no recipe; only pictures that `generate` wrote carry one"
    ):
        read_recipe(tmp_path / "a.png")


def test_a_picture_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "none.png")
    (tmp_path / "a.png").write_bytes(WHOLE)
    assert read_recipe(tmp_path / "a.png") == json.loads('{"prompt": "a"}')
