"""Reading, naming, pairing, building and converting checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from builders import released_state, released_vae_state, same, tiny_transformer, tiny_vae, write_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfy_moss.model import checkpoint, tensors
from comfy_moss.model.checkpoint import load_infinity, transformer_from_state, vae_from_state
from comfy_moss.model.infinity import InfinityTransformer
from comfy_moss.model.tensors import CheckpointError, convert, open_tensors

DATA = Path(__file__).parent / "data"


def released_shapes(name: str) -> dict[str, Tensor]:
    """A released file's tensors without their values."""
    shapes = json.loads((DATA / f"keys_{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.fixture()
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights")


@pytest.fixture(scope="module")
def transformer() -> InfinityTransformer:
    return tiny_transformer()


# --- released names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth", "width", "heads", "bits", "parameters"),
    [
        ("infinity_layer12", 12, 768, 8, 16, 125_148_800),
        ("infinity_2b", 32, 2048, 16, 32, 2_204_564_032),
        ("infinity_8b", 40, 3584, 28, 56, 8_375_791_824),
    ],
)
def test_released_transformers_build_with_nothing_missing_and_nothing_left_over(
    name: str, depth: int, width: int, heads: int, bits: int, parameters: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = transformer_from_state(released_shapes(name))
    config = model.config
    assert (config.depth, config.width, config.heads, config.bits) == (depth, width, heads, bits)
    with torch.device("meta"):
        apart = InfinityTransformer(config)  # with the biases of q and v as released, without zeros for k
    assert sum(p.numel() for p in apart.parameters()) == parameters
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert caplog.text == ""  # left-over tensors would be named there


@pytest.mark.parametrize(
    ("name", "channels", "stride", "parameters"),
    [("vae_d32", 32, 16, 110_118_051), ("vae_d56_patchify", 14, 8, 81_624_209)],
)
def test_released_vaes_build_with_nothing_missing_and_nothing_left_over(
    name: str, channels: int, stride: int, parameters: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = vae_from_state(released_shapes(name))
    assert (model.config.channels, model.config.stride) == (channels, stride)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert caplog.text == ""


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_blocks_are_numbered_through_chunks_even_of_unequal_size(chunks: int) -> None:
    model = tiny_transformer(depth=5)
    assert same(transformer_from_state(released_state(model, chunks)), model)


def test_ten_and_more_chunks_keep_their_numeric_order() -> None:
    model = tiny_transformer(depth=11)
    assert same(transformer_from_state(released_state(model, 11)), model)


def test_a_lost_chunk_is_refused(transformer: InfinityTransformer) -> None:
    state = {
        name: t for name, t in released_state(transformer).items() if not name.startswith("block_chunks.0.")
    }
    with pytest.raises(CheckpointError, match="lacks one of its chunks"):
        transformer_from_state(state)


def test_a_lost_block_is_named(transformer: InfinityTransformer) -> None:
    model = tiny_transformer(depth=3)
    state = {
        n: t for n, t in released_state(model, 1).items() if not n.startswith("block_chunks.0.module.1.")
    }
    with pytest.raises(CheckpointError, match=r"lacks the tensors blocks\.1\.ada_gss, .* and \d+ more"):
        transformer_from_state(state)


@pytest.mark.parametrize(
    "name", ["lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen"]
)
def test_unused_buffers_are_ignored(transformer: InfinityTransformer, name: str) -> None:
    assert same(transformer_from_state({**released_state(transformer), name: torch.zeros(3)}), transformer)


def test_unknown_tensors_are_named_in_the_log(
    transformer: InfinityTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    model = transformer_from_state({**released_state(transformer), "extra.weight": torch.zeros(3)})

    assert same(model, transformer)
    assert "does not use: extra.weight" in caplog.text


def test_a_tensor_of_another_size_is_named(transformer: InfinityTransformer) -> None:
    with pytest.raises(CheckpointError, match="another size: head.bias;"):
        transformer_from_state({**released_state(transformer), "head.bias": torch.zeros(3)})


def test_both_layouts_of_the_attention_scale_are_read(transformer: InfinityTransformer) -> None:
    state = released_state(transformer)
    turned = {n: t.reshape(1, 1, -1, 1) if n.endswith("scale_mul_1H11") else t for n, t in state.items()}
    assert same(transformer_from_state(turned), transformer)


@pytest.mark.parametrize("rows", [5, 600])
def test_any_number_of_unconditional_rows_is_accepted(transformer: InfinityTransformer, rows: int) -> None:
    model = transformer_from_state({**released_state(transformer), "cfg_uncond": torch.zeros(rows, 32)})
    assert model.config.text_length == rows


# --- the codec's two namings --------------------------------------------------------------------------------


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the extra level: X.weight instead of X.conv.weight and X.norm.weight."""
    return {
        n.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias").replace(".norm.", "."): t
        for n, t in state.items()
    }


def test_both_namings_of_a_vae_give_the_same_model() -> None:
    model = tiny_vae(width=32, mult=(1, 2, 2))  # has shortcuts, downsampling and upsampling
    plain = plain_names(model.state_dict())
    assert not plain.keys() & {n for n in model.state_dict() if ".norm." in n or ".conv_in.conv." in n}
    assert same(vae_from_state(plain), model) and same(vae_from_state(model.state_dict()), model)


def test_the_exact_name_wins_over_the_plain_one() -> None:
    model = tiny_vae()
    other = {name: torch.zeros_like(tensor) for name, tensor in plain_names(model.state_dict()).items()}
    assert same(vae_from_state({**other, **model.state_dict()}), model)
    assert same(vae_from_state({**model.state_dict(), **other}), model)


def test_only_encoder_and_decoder_of_a_vae_are_used() -> None:
    model = tiny_vae()
    assert same(
        vae_from_state({**released_vae_state(model), "discriminator.0.weight": torch.zeros(9)}), model
    )


def test_an_incomplete_vae_is_refused_by_name() -> None:
    state = tiny_vae().state_dict()
    del state["decoder.mid.block_1.conv1.conv.bias"]
    with pytest.raises(CheckpointError, match=r"lacks the tensors decoder\.mid\.block_1\.conv1\.conv\.bias;"):
        vae_from_state(state)


# --- precision and damage -----------------------------------------------------------------------------------


def test_only_the_blocks_are_in_low_precision(weights: Path) -> None:
    model = load_infinity(
        weights / "transformer.safetensors", weights / "vae.safetensors", dtype=torch.bfloat16
    )
    for name, parameter in model.transformer.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if name.startswith("blocks.") else torch.float32), name
    assert {p.dtype for p in model.vae.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers_are_named(transformer: InfinityTransformer, value: float) -> None:
    state = released_state(transformer)
    state["block_chunks.1.module.0.sa.proj.weight"][3, 4] = value
    with pytest.raises(
        CheckpointError, match=r"blocks\.1\.sa\.proj\.weight holds values that are not numbers"
    ):
        transformer_from_state(state)


def test_float16_overflow_advises_another_precision(transformer: InfinityTransformer) -> None:
    state = released_state(transformer)
    state["block_chunks.0.module.0.ffn.fc2.bias"][0] = 1e6
    with pytest.raises(CheckpointError, match="does not fit into float16; choose bfloat16"):
        transformer_from_state(state, dtype=torch.float16)


def test_a_loaded_model_does_not_change_with_its_file(weights: Path) -> None:
    path = weights / "transformer.safetensors"
    model = transformer_from_state(open_tensors(path))
    before = model.head.bias.clone()
    with path.open("r+b") as file:  # in place, so a mapping of the file would see it
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    assert torch.equal(model.head.bias, before) and all(p.abs().sum() > 0 for p in model.parameters())


# --- pairing ------------------------------------------------------------------------------------------------


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise AssertionError("a tensor was read although its shape was wrong")

    monkeypatch.setattr(tensors.Tensors, "__getitem__", fail)


def test_a_vae_of_another_size_is_refused_before_anything_is_read(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tiny_vae(channels=4).state_dict(), weights / "small.safetensors")
    no_reading(monkeypatch)
    message = r"small.safetensors \(4 channels\) does not belong to transformer.safetensors"
    message += r" \(8 bits a token\); use a VAE of 8"
    with pytest.raises(CheckpointError, match=message):
        load_infinity(weights / "transformer.safetensors", weights / "small.safetensors")


def test_a_vae_of_a_quarter_of_the_bits_means_patchify(weights: Path) -> None:
    save_file(tiny_vae(channels=2).state_dict(), weights / "patchify.safetensors")
    model = load_infinity(weights / "transformer.safetensors", weights / "patchify.safetensors")
    assert model.patchify and model.map_grid((3, 4)) == (6, 8)


@pytest.mark.parametrize(
    ("bits", "vae"),
    [
        (16, "infinity_vae_d16.pth"), (32, "infinity_vae_d32reg.pth"),
        (56, "infinity_vae_d56_f8_14_patchify.pth"),
    ],
)
def test_the_released_vae_that_belongs_is_named(bits: int, vae: str) -> None:
    with pytest.raises(CheckpointError, match=f"use {vae}"):
        checkpoint.check_pair(bits, 24, Path("model.pth"), Path("other.pth"))


def test_the_namesake_of_the_2b_vae_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match="infinity_vae_d32.pth has the right size but .* use infinity_vae_d32reg.pth"
    ):
        checkpoint.check_pair(32, 32, Path("infinity_2b_reg.pth"), Path("infinity_vae_d32.pth"))
    checkpoint.check_pair(32, 32, Path("infinity_2b_reg.pth"), Path("infinity_vae_d32reg.pth"))


def test_a_text_encoder_of_another_width_is_refused_before_anything_is_read(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weights / "text").mkdir()
    (weights / "text" / "config.json").write_text('{"model_type": "t5", "d_model": 64}')
    no_reading(monkeypatch)
    with pytest.raises(
        CheckpointError,
        match="transformer.safetensors reads text features of 32 numbers, but .*text makes 64",
    ):
        load_infinity(weights / "transformer.safetensors", weights / "vae.safetensors", weights / "text")


def test_the_2b_model_asks_for_its_text_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 4096}')
    with pytest.raises(CheckpointError, match="use flan-t5-xl"):
        checkpoint.check_text(2048, Path("infinity_2b_reg.pth"), tmp_path)


def test_swapped_files_are_told_apart(weights: Path) -> None:
    transformer, vae = weights / "transformer.safetensors", weights / "vae.safetensors"
    with pytest.raises(
        CheckpointError, match="vae.safetensors seems to be a VAE, not an Infinity transformer"
    ):
        load_infinity(vae, transformer)
    with pytest.raises(
        CheckpointError, match="transformer.safetensors seems to be an Infinity transformer, not a VAE"
    ):
        load_infinity(transformer, transformer)


def test_a_text_encoder_given_as_transformer_is_recognised() -> None:
    state = {
        "shared.weight": torch.zeros(1), "encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(1),
    }
    with pytest.raises(CheckpointError, match="seems to be a T5 text encoder"):
        transformer_from_state(state)


# --- identity and conversion --------------------------------------------------------------------------------


def identity(transformer: Path, vae: Path) -> str:
    return load_infinity(transformer, vae).model_id


def test_the_model_id_is_the_same_in_every_container_and_changes_with_the_weights(
    tmp_path: Path, weights: Path
) -> None:
    first = identity(weights / "transformer.safetensors", weights / "vae.safetensors")
    torch.save(load_file(weights / "transformer.safetensors"), tmp_path / "t.pth")
    torch.save({"vae": plain_names(load_file(weights / "vae.safetensors"))}, tmp_path / "v.pth")
    convert(tmp_path / "t.pth", tmp_path / "t.safetensors")
    assert len(first) == 12 and int(first, 16) >= 0
    assert identity(tmp_path / "t.pth", tmp_path / "v.pth") == first
    assert identity(tmp_path / "t.safetensors", tmp_path / "v.pth") == first
    rounded = {
        name: tensor.bfloat16() for name, tensor in load_file(weights / "transformer.safetensors").items()
    }
    for dtype in (torch.bfloat16, torch.float32):  # the same values, stored in two ways
        save_file(
            {name: tensor.to(dtype) for name, tensor in rounded.items()}, tmp_path / f"{dtype}.safetensors"
        )
    small, large = (
        identity(tmp_path / f"{dtype}.safetensors", tmp_path / "v.pth")
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert small == large != first
    other = write_weights(tmp_path / "other", seed=5)
    assert identity(other / "transformer.safetensors", weights / "vae.safetensors") != first
    assert identity(weights / "transformer.safetensors", other / "vae.safetensors") != first
