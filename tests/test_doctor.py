"""Doctor: what lies where, what fits, what is missing; without paths unless asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_files
import torch
from builders import released_vae_state, tiny_vae
from safetensors.torch import save_file

from comfy_moss import cli, doctor


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder as people have it: two transformers, one of them without its VAE, HART, and litter."""
    folder = tmp_path_factory.mktemp("private-name") / "ComfyUI" / "models"
    real_files.write_transformer(folder / "infinity" / "infinity_2b_reg.pth", bits=32)
    real_files.write_transformer(folder / "infinity" / "own" / "transformer.safetensors")
    real_files.write_vae(folder / "infinity" / "own" / "vae.safetensors")
    real_files.write_text(folder / "text_encoders" / "flan-t5-xl")
    real_files.write_vae(folder / "vae" / "ae.safetensors", channels=5)
    foreign = released_vae_state(tiny_vae()) | {"quantize.embedding.weight": torch.zeros(3, 3)}
    save_file(foreign, folder / "vae" / "var.safetensors")
    real_files.litter(folder / "infinity", "infinity_2b_reg.pth")
    real_files.write_hart(folder / "hart")
    return folder


@pytest.fixture(scope="module")
def text(models: Path) -> str:
    return doctor.report([models])


@pytest.mark.parametrize(
    "line",
    [
        "infinity/infinity_2b_reg.pth: an Infinity transformer, 2 blocks, 32 wide, 32 bits a token",
        "infinity/own/vae.safetensors: a VAE of 8 channels",
        "vae/var.safetensors: is a VAE that does not belong to Infinity: it has a codebook",
        "text_encoders/flan-t5-xl/: a T5 text encoder of 32 numbers a token, whole",
        "hart/: a HART model, ready, 128 pixels",
        "infinity/infinity_2b_reg (1).safetensors: is only a Git LFS pointer",
        "infinity/other.safetensors: is not fully downloaded yet",
        "infinity/own/transformer.safetensors: complete; fitting: infinity/own/vae.safetensors",
        "2b: missing infinity_vae_d32reg.pth",
        f"torch {torch.__version__}, triton ",
        "Attention and RoPE: ",
    ],
)
def test_every_file_is_told_by_its_content(text: str, line: str) -> None:
    assert line in text


def test_what_is_missing_is_told_with_its_place(tmp_path: Path) -> None:
    real_files.write_transformer(tmp_path / "infinity_2b_reg.pth", bits=32)
    text = doctor.report([tmp_path])
    assert "infinity_2b_reg.pth: lacks its VAE (infinity_vae_d32reg.pth, into models/vae)" in text
    assert "its text encoder (the folder flan-t5-xl, into models/text_encoders)" in text
    assert "no Infinity transformer was found; put one into models/infinity" in doctor.report(
        [tmp_path / "none"]
    )


def test_paths_are_private_unless_asked_for(models: Path, text: str) -> None:
    assert "private-name" not in text and str(Path.home()) not in text
    assert str(models) in doctor.report([models], paths=True)


def test_the_command_prints_it(models: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["doctor", str(models)]) == 0
    assert "infinity/own/transformer.safetensors: complete" in capsys.readouterr().out


def test_an_old_torch_is_told(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    text = doctor.report([models])
    assert "refused, this torch is older than 2.6" in text
    assert "infinity/infinity_2b_reg.pth: is a PyTorch file, and reading those could run code" in text
