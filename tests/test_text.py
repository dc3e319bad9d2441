"""Prompts to features: tokens, lengths, precision, and clear words when files are missing."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfy_moss.model.tensors import CheckpointError
from comfy_moss.model.text import TextEncoder, load_tokenizer, text_width


@pytest.fixture(scope="module")
def encoder(model_dir: Path) -> TextEncoder:
    return TextEncoder.load(model_dir / "text")


@pytest.fixture()
def text_dir(model_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(model_dir / "text", tmp_path / "text"))


def test_features_are_those_of_transformers_own_loader(model_dir: Path, encoder: TextEncoder) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    ids = AutoTokenizer.from_pretrained(model_dir / "text")(
        "a red circle and a dog", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = T5EncoderModel.from_pretrained(model_dir / "text").eval()(ids).last_hidden_state[0]
    (features,) = encoder.encode(["a red circle and a dog"])
    assert features.shape == (7, 32) and features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_every_prompt_ends_with_the_end_token(encoder: TextEncoder) -> None:
    assert encoder.tokenize("a dog")[-1] == 1 and len(encoder.tokenize("a dog")) == 3


def test_an_empty_prompt_is_the_end_token_alone(encoder: TextEncoder) -> None:
    (features,) = encoder.encode([""])
    assert encoder.tokenize("") == [1] and features.shape == (1, 32)


def test_no_prompt_changes_the_features_of_another(encoder: TextEncoder) -> None:
    (alone,) = encoder.encode(["red cat"])
    together = encoder.encode(["a photo of two dogs above three blue stars", "red cat", "", "red cat"])
    assert torch.equal(together[1], alone) and torch.equal(together[3], alone)
    assert [len(rows) for rows in together] == [10, 3, 1, 3]


def test_padding_and_truncation_in_the_tokenizer_file_do_nothing(
    encoder: TextEncoder, text_dir: Path
) -> None:
    file = text_dir / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    pad = {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>", "pad_to_multiple_of": None}
    settings["padding"] = {"strategy": {"Fixed": 16}, "direction": "Right", **pad}
    file.write_text(json.dumps(settings))
    assert load_tokenizer(text_dir)("a red cat") == encoder.tokenize("a red cat")


def test_a_prompt_of_512_tokens_fits_and_one_more_is_refused_with_both_numbers(encoder: TextEncoder) -> None:
    (features,) = encoder.encode(["cat " * 511])
    assert features.shape == (512, 32)
    with pytest.raises(ValueError, match="it has 513 tokens and the model reads at most 512; shorten it"):
        encoder.encode(["a dog", "cat " * 512])


def test_a_model_may_read_less(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="it has 6 tokens and the model reads at most 5"):
        replace(encoder, max_tokens=5).encode(["a a a a a"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gives_nearby_float32_features(
    model_dir: Path, encoder: TextEncoder, dtype: torch.dtype
) -> None:
    low = TextEncoder.load(model_dir / "text", dtype=dtype)
    (features,), (expected,) = low.encode(["a red circle"]), encoder.encode(["a red circle"])
    assert features.dtype == torch.float32 and not torch.equal(features, expected)
    torch.testing.assert_close(features, expected, atol=0.1, rtol=0.1)


def test_the_matrix_that_overflows_in_float16_stays_in_float32(model_dir: Path) -> None:
    model = TextEncoder.load(model_dir / "text", dtype=torch.float16).model
    kept = {name.split(".")[-2] for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {"wo"}


def test_a_text_encoder_that_returns_no_numbers_is_reported(model_dir: Path) -> None:
    broken = TextEncoder.load(model_dir / "text")
    broken.model.encoder.final_layer_norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="text encoder returned values that are not numbers"):
        broken.encode(["a dog"])


def test_damaged_weights_are_named(text_dir: Path) -> None:
    state = load_file(text_dir / "model.safetensors")
    state["encoder.final_layer_norm.weight"][0] = float("nan")
    save_file(state, text_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match="final_layer_norm.weight holds values that are not numbers"):
        TextEncoder.load(text_dir)


def test_the_encoder_is_taken_from_a_file_with_a_decoder(encoder: TextEncoder, text_dir: Path) -> None:
    state = load_file(text_dir / "model.safetensors")
    table = state.pop("shared.weight")
    extra = {
        "encoder.embed_tokens.weight": table,
        "decoder.final_layer_norm.weight": torch.ones(32),
        "lm_head.weight": table.clone(),
    }
    (text_dir / "model.safetensors").unlink()
    torch.save({**state, **extra}, text_dir / "pytorch_model.bin")
    loaded = TextEncoder.load(text_dir)
    assert torch.equal(loaded.encode(["a dog"])[0], encoder.encode(["a dog"])[0])
    assert loaded.model.encoder.embed_tokens.weight is loaded.model.shared.weight


def test_missing_weights_are_named(text_dir: Path) -> None:
    state = load_file(text_dir / "model.safetensors")
    del state["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(state, text_dir / "model.safetensors")
    with pytest.raises(
        CheckpointError, match="lacks the tensors encoder.block.0.layer.0.SelfAttention.q.weight;"
    ):
        TextEncoder.load(text_dir)


def test_a_sentencepiece_file_serves_when_there_is_no_tokenizer_json(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a red circle and a blue square above the green star\n" * 20)
    ids_of_t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=25, minloglevel=2, **ids_of_t5
    )
    tokenize = load_tokenizer(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    ids = tokenize("a blue star")
    assert ids[-1] == 1 and processor.decode(ids[:-1]) == "a blue star" and tokenize("") == [1]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "no text encoder directory: config.json is missing"),
        ("tokenizer.json", "tokenizer.json and spiece.model are missing"),
        ("model.safetensors", "should hold one model file"),
    ],
)
def test_a_missing_file_is_named(text_dir: Path, file: str, message: str) -> None:
    (text_dir / file).unlink()
    with pytest.raises(CheckpointError, match=message):
        TextEncoder.load(text_dir)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_damaged_file_is_named(text_dir: Path, file: str) -> None:
    (text_dir / file).write_text((text_dir / file).read_text()[:40])
    with pytest.raises(CheckpointError, match=f"{file} is damaged"):
        TextEncoder.load(text_dir)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "umt5", "d_model": 2048}')
    with pytest.raises(CheckpointError, match="holds a umt5 model, not a T5 text encoder"):
        text_width(tmp_path)


@pytest.mark.parametrize(
    ("package", "message"), [("transformers", "package transformers"), ("tokenizers", "package tokenizers")]
)
def test_a_missing_package_is_named(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, package: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # import then raises ModuleNotFoundError
    with pytest.raises(CheckpointError, match=message):
        TextEncoder.load(model_dir / "text")


def test_nothing_is_looked_up_on_the_network(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    TextEncoder.load(model_dir / "text").encode(["a dog"])
    with pytest.raises(CheckpointError, match="config.json is missing"):
        TextEncoder.load(Path("google/flan-t5-xl"))  # a hub name, not a directory
