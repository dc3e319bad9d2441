"""HART's text: slots, padding, positions and the system prompt."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hart_builders import tiny_qwen_dir
from transformers import Qwen2Model

from comfy_moss.model.tensors import CheckpointError
from comfy_moss.model.text import PromptEncoder, read_system_prompt

SLOTS, SYSTEM = 8, "the photo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_dir(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> PromptEncoder:
    return PromptEncoder.load(folder, SYSTEM, SLOTS)


def test_every_prompt_fills_all_slots_and_positions_stop_at_its_end(encoder: PromptEncoder):
    short, long = encoder.encode(["a red star", "a red star and two blue dogs above three"])

    assert short.features.shape == long.features.shape == (SLOTS, encoder.width) == (SLOTS, 16)
    assert short.positions.tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    assert long.positions.tolist() == list(range(8))


def test_an_empty_prompt_has_no_position_at_all(encoder: PromptEncoder):
    assert encoder.encode([""])[0].positions.tolist() == [-1] * SLOTS


def test_features_are_those_of_transformers_own_model(folder: Path, encoder: PromptEncoder):
    """Positions count along system prompt, prompt and padding; padding is not attended to, but has features.
    """
    model = Qwen2Model(encoder.model.config).eval()
    model.load_state_dict(encoder.model.state_dict())
    ids = [*encoder.tokenize(SYSTEM), *encoder.tokenize("two dogs"), *[encoder.pad] * (SLOTS - 2)]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        hidden = model(
            input_ids=torch.tensor([ids]), attention_mask=mask, position_ids=torch.arange(10)[None]
        )

    assert torch.allclose(
        encoder.encode(["two dogs"])[0].features, hidden.last_hidden_state[0, 2:], atol=1e-5
    )


def test_the_system_prompt_changes_every_slot(folder: Path, encoder: PromptEncoder):
    bare = PromptEncoder.load(folder, "", SLOTS)

    difference = (
        (bare.encode(["a dog"])[0].features - encoder.encode(["a dog"])[0].features).abs().amax(dim=1)
    )

    assert bare.system == () and (difference > 1e-3).all()


def test_what_is_too_long_is_cut_off_with_a_warning(encoder: PromptEncoder, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        ids = encoder.ids("a an the of and red green blue yellow circle")

    assert len(ids) == SLOTS and "10 tokens" in caplog.text
    assert ids == encoder.ids("a an the of and red green blue")


def test_padding_goes_where_the_tokenizer_says(folder: Path, tmp_path: Path):
    right = PromptEncoder.load(folder, SYSTEM, SLOTS)
    left = PromptEncoder(right.model, right.tokenize, right.system, right.pad, SLOTS, "left")

    assert left.encode(["two dogs"])[0].positions.tolist() == [-1, -1, -1, -1, -1, -1, 0, 1]


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model."])
def test_names_of_files_with_more_in_them_are_understood(
    folder: Path, encoder: PromptEncoder, tmp_path: Path, prefix: str
):
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    state = {
        name.replace("model.", prefix, 1): t for name, t in load_file(folder / "model.safetensors").items()
    }
    save_file(state | {"visual.patch_embed.weight": torch.zeros(2)}, tmp_path / "model.safetensors")

    loaded = PromptEncoder.load(tmp_path, SYSTEM, SLOTS)

    assert torch.equal(loaded.encode(["a dog"])[0].features, encoder.encode(["a dog"])[0].features)


def test_a_missing_system_prompt_is_an_error_that_says_where_it_belongs(tmp_path: Path):
    with pytest.raises(CheckpointError, match="lacks system_prompt.txt"):
        read_system_prompt(tmp_path)


def test_another_system_prompt_than_the_released_one_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "system_prompt.txt").write_text("Draw.")
    assert read_system_prompt(tmp_path) == "Draw."
    assert "not the system prompt that HART was trained with" in caplog.text


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str):
    for file in folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        PromptEncoder.load(tmp_path, SYSTEM, SLOTS)


def test_another_kind_of_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "t5", "hidden_size": 8}')
    (tmp_path / "tokenizer.json").write_bytes(
        (tiny_qwen_dir(tmp_path / "other") / "tokenizer.json").read_bytes()
    )
    with pytest.raises(CheckpointError, match="holds a t5 model, not Qwen2"):
        PromptEncoder.load(tmp_path, SYSTEM, SLOTS)
