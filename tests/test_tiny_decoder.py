"""The tiny decoder: read by its shapes, found by its codec's name, used where somebody asks for it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from builders import tiny_vae, write_model
from hart_builders import tiny_tokenizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from comfy_moss.cli import main
from comfy_moss.images import read_recipe
from comfy_moss.model.library import NANO_FOLDER
from comfy_moss.model.tensors import CheckpointError
from comfy_moss.model.tiny_decoder import (
    TinyDecoder,
    find_tiny_decoder,
    load_tiny_decoder,
    tiny_decoder_name,
)
from comfy_moss.request import arguments

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = NANO_FOLDER / "taenano_decoder.safetensors"


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """The module training.tiny_decoder; the root is on sys.path only while it is imported."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("training.tiny_decoder")
    finally:
        sys.path.remove(str(ROOT))


def write(path: Path, channels: int = 8, stride: int = 2, widths: tuple[int, ...] = (8, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(TinyDecoder.of_stride(channels, stride, widths).state_dict(), path)
    return path


@pytest.mark.parametrize(("stride", "widths"), [(8, ()), (16, ()), (8, (32, 32, 24, 16)), (2, (8, 4))])
def test_sizes_are_read_from_the_weights(stride: int, widths: tuple[int, ...]) -> None:
    model = TinyDecoder.of_stride(16, stride, widths)
    again = TinyDecoder.from_shapes({name: value.shape for name, value in model.state_dict().items()})
    again.load_state_dict(model.state_dict())
    codes = torch.randn(2, 16, 5, 3)
    assert torch.equal(again(codes), model(codes)) and (again.stride, again.channels) == (stride, 16)
    image = again.decode(codes)
    assert image.shape == (2, 3, 5 * stride, 3 * stride) and image.abs().max() <= 1


def test_a_decoder_of_stride_8_has_the_names_of_taesd() -> None:
    """As the host's class numbers its layers: three levels of three blocks, one block at the finest."""
    names = set(TinyDecoder.of_stride(4, 8).state_dict())
    blocks = [3, 4, 5, 8, 9, 10, 13, 14, 15, 18]
    expected = {f"{n}.conv.{k}.{part}" for n in blocks for k in (0, 2, 4) for part in ("weight", "bias")}
    plain = {f"{n}.{part}" for n in (1, 19) for part in ("weight", "bias")}
    assert names == expected | plain | {f"{n}.weight" for n in (7, 12, 17)}


def test_what_is_none_or_of_another_codec_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    assert load_tiny_decoder(path, 8, 2).stride == 2
    with pytest.raises(CheckpointError, match="decodes 8 channels at 2 pixels a cell, this model has 16"):
        load_tiny_decoder(path, 16, 2)
    save_file({"conv_in.weight": torch.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="b.safetensors"):
        load_tiny_decoder(tmp_path / "b.safetensors", 8, 2)


def test_it_is_found_by_the_name_of_its_codec(tmp_path: Path) -> None:
    codec, folder = tmp_path / "infinity_vae_d32reg.pth", tmp_path / "vae_approx"
    assert tiny_decoder_name(codec) == "taeinfinity_vae_d32reg_decoder"
    assert tiny_decoder_name(tmp_path / "hart-0.7b-1024px" / "tokenizer") == "taehart_decoder"
    assert find_tiny_decoder(codec, [folder]) is None
    path = write(folder / "taeinfinity_vae_d32reg_decoder.safetensors")
    assert find_tiny_decoder(codec, [folder]) == path
    assert find_tiny_decoder(NANO_FOLDER / "vae.safetensors", [folder]) == SHIPPED


def rim_error(image: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean difference of images in [-1, 1] in their outermost cell, 8 pixels wide."""
    outside = torch.ones(image.shape[2:], dtype=torch.bool)
    outside[8:-8, 8:-8] = False
    return (image - expected).abs()[:, :, outside].mean().item()


def test_the_shipped_one_is_small_and_close_to_the_codec(training) -> None:
    assert SHIPPED.stat().st_size <= 600_000
    codec, rng = training.open_codec(NANO_FOLDER / "vae.safetensors"), np.random.default_rng(99)
    pictures = training.rendered(rng, 256)
    pairs = [training.pair(codec, next(pictures), rng) for _ in range(3)]
    tiny = load_tiny_decoder(SHIPPED, 16, 8)
    assert training.psnr(tiny, pairs) > 28
    assert max(rim_error(tiny.decode(codes), training.to_float(picture)) for codes, picture in pairs) < 0.2
    sizes = [sum(p.numel() for p in part.parameters()) for part in (tiny, codec.decoder)]
    assert sizes[0] < 0.4 * sizes[1]


def test_final_pictures_come_from_it_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = {}
    for name, option in (("codec", []), ("tiny", ["--tiny"])):
        path = tmp_path / f"{name}.png"
        command = ["generate", "a red heart", "--method", "draft-6", *option, "-o", str(path), "--json"]
        assert main(command) == 0
        told = json.loads(capsys.readouterr().out)
        assert told.get("decoder") == ("tiny" if option else None)
        images[name] = np.asarray(Image.open(path)).astype(float)
        assert ("--tiny" in arguments(read_recipe(path))) == bool(option)
    apart = np.abs(images["codec"] - images["tiny"]).mean()
    assert 0 < apart < 20


def test_where_there_is_none_the_request_says_how_to_get_one(tmp_path: Path, capsys) -> None:
    command = ["generate", "a red cat", "--model", str(write_model(tmp_path / "own")), "--tiny"]
    assert main([*command, "--pixels", "0.06M", "-o", str(tmp_path / "a.png")]) == 2
    assert "make it with training/tiny_decoder.py, or leave --tiny out" in capsys.readouterr().err


# --- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [tiny_vae(), tiny_tokenizer()], ids=["bits", "codebook"])
def test_pairs_of_any_codec_are_codes_and_what_it_shows(training, codec) -> None:
    image, rng = torch.rand(1, 3, 32, 32) * 2 - 1, np.random.default_rng(0)
    sums = training.sums_of_codes(codec, image)
    assert len(sums) > 3 and sums[-1].shape == (1, 8, 16, 16)
    codes, picture = training.pair(codec, image, rng)
    assert picture.dtype == torch.uint8 and picture.shape == image.shape
    assert any(torch.equal(codes, one) for one in sums)


def test_any_folder_of_pictures_serves(training, tmp_path: Path) -> None:
    for n, size in enumerate([(40, 90), (300, 200), (64, 64)]):
        noise = np.random.default_rng(n).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{n}.png")
    pictures = training.from_folder(tmp_path, np.random.default_rng(0), 64)
    for _ in range(8):
        picture: Tensor = next(pictures)
        assert picture.shape == (1, 3, 64, 64) and picture.min() >= -1 and picture.max() <= 1
    with pytest.raises(ValueError, match="no pictures"):
        next(training.from_folder(tmp_path / "none", np.random.default_rng(0), 64))


def test_training_goes_on_where_it_stopped_and_gets_closer(training, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", [
        "tiny_decoder", "--minutes", "0.4", "--chunk", "0.15", "--pool", "2", "--side", "128",
        "--state", str(tmp_path / "state.pt"), "--to", str(tmp_path), "--widths", "8", "8", "8", "8",
    ])
    steps = []
    for _ in range(2):
        training.main()
        steps.append(torch.load(tmp_path / "state.pt", weights_only=True)["step"])
    assert 0 < steps[0] < steps[1]
    assert load_tiny_decoder(tmp_path / "taenano_decoder.safetensors", 16, 8).stride == 8
