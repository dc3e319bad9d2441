"""HART's files: sizes are read, the released layout is loaded, converted and loaded again, and what does not
fit is refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from builders import same
from hart_builders import (
    TINY,
    hart_settings,
    released_hart_state,
    tiny_hart,
    tiny_tokenizer,
    write_hart_model,
)
from safetensors.torch import load_file

from comfy_moss.model.hart import HartTransformer
from comfy_moss.model.hart_checkpoint import (
    CODEC_UNUSED,
    UNUSED,
    hart_from_state,
    load_hart,
    open_hart,
    open_tokenizer,
    tokenizer_from_state,
)
from comfy_moss.model.library import find_model, survey
from comfy_moss.model.quantize import Quantizer
from comfy_moss.model.schedule import square_schedule
from comfy_moss.model.tensors import CheckpointError, Tensors, convert, open_tensors
from comfy_moss.model.vae import Tokenizer

KEYS = Path(os.environ.get("MOSS_KEYS", Path(__file__).parents[2] / "shared" / "keys"))
NEEDS_KEYS = pytest.mark.skipif(
    not KEYS.is_dir(), reason="NOT VERIFIED: the released files' names are not here; set MOSS_KEYS"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_hart_model(tmp_path / "hart-0.7b-1024px")


def listed(name: str) -> tuple[Tensors, dict]:
    """A released file's tensors without values, and its configuration."""
    content = json.loads((KEYS / name).read_text())
    state = {key: torch.empty(entry["shape"], device="meta") for key, entry in content["tensors"].items()}
    return Tensors.of(state), content["config"]


@NEEDS_KEYS
def test_the_released_transformer_is_covered_with_nothing_missing_or_left_over():
    state, settings = listed("keys_hart_0p7b.json")
    tensors, config = open_hart(state, settings)
    with torch.device("meta"):
        model = HartTransformer(config)

    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == tensors.shapes
    assert {n.rpartition(".")[2] for n in state if n not in tensors} == {
        "zero_k_bias", "lvl_1L", "attn_bias_for_masking",
    }
    assert sum(p.numel() for p in model.parameters()) == 732_399_168
    assert sum(p.numel() for p in model.diffloss.parameters()) == 36_585_536
    assert (config.depth, config.width, config.heads, config.hidden, config.text_length) == (
        24, 1536, 24, 4096, 300,
    )


@NEEDS_KEYS
def test_the_released_tokenizer_is_covered_with_nothing_missing_or_left_over():
    state, _ = listed("keys_hart_vae.json")
    tensors, config = open_tokenizer(state)
    with torch.device("meta"):
        model = Tokenizer(config, Quantizer(*tensors.shapes["quantize.embedding.weight"]))

    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == tensors.shapes
    used = [n.removeprefix("vae.") for n in state if n.startswith("vae.")]
    assert len([n for n in used if not CODEC_UNUSED.fullmatch(n)]) == len(tensors)
    assert sum(p.numel() for p in model.parameters()) == 108_948_355
    assert (config.stride, config.channels) == (16, 32)


def test_the_released_layout_is_loaded_and_draws_as_it_should(model: Path):
    backbone = load_hart(model / "llm" / "ema_model.bin", model / "tokenizer")

    assert same(backbone.transformer, tiny_hart()) and same(backbone.vae, tiny_tokenizer())
    assert backbone.transformer.config == TINY
    assert not any(p.requires_grad for p in backbone.transformer.parameters())


def test_low_precision_is_for_the_large_matrices_and_the_codec_only(model: Path):
    backbone = load_hart(model / "llm" / "ema_model.bin", model / "tokenizer", dtype=torch.bfloat16)

    kinds = {name: p.dtype for name, p in backbone.transformer.named_parameters()}
    low = {name for name, dtype in kinds.items() if dtype == torch.bfloat16}
    assert {
        "blocks.0.attn.qkv_proj.weight", "blocks.1.ffn.down_proj.weight", "diffloss.net.input_proj.weight",
    } <= low
    assert (
        not {
            "head.weight", "blocks.0.ln_wo_grad.weight", "diffloss.net.res_blocks.0.in_ln.weight",
            "word_embed.weight",
        }
        & low
    )
    assert backbone.vae.quantize.codebook.dtype == torch.float32
    assert backbone.vae.decoder.conv_in.conv.weight.dtype == torch.bfloat16


def test_converted_files_are_smaller_and_the_same_model(model: Path):
    plain = load_hart(model / "llm" / "ema_model.bin", model / "tokenizer")
    convert(model / "llm" / "ema_model.bin", model / "llm" / "ema_model.safetensors")
    convert(model / "tokenizer", model / "tokenizer" / "model.safetensors")

    assert "attn_bias_for_masking" not in load_file(model / "llm" / "ema_model.safetensors")
    assert {n.split(".")[0] for n in load_file(model / "tokenizer" / "model.safetensors")} == {"vae"}
    again = find_model(str(model), []).load()
    assert same(again.transformer, plain.transformer) and same(again.vae, plain.vae)
    assert again.model_id == plain.model_id


def test_where_config_json_is_silent_the_file_itself_tells_the_schedule(model: Path):
    (model / "llm" / "config.json").unlink()

    config = find_model(str(model), []).load().transformer.config

    assert (config.sides, config.text_length) == (TINY.sides, TINY.text_length)
    # released ones have heads of 64 channels
    assert (config.diffusion_steps, config.eps, config.heads) == (8, 1e-6, 1)


@pytest.mark.parametrize("change", [{"patch_nums": [1, 2, 3, 4, 6, 9]}, {"context_token": 7}])
def test_a_config_json_of_another_model_is_refused(change: dict):
    state = Tensors.of(released_hart_state(tiny_hart()))
    with pytest.raises(CheckpointError, match="its config.json says"):
        open_hart(state, hart_settings(TINY) | change)


def test_without_any_schedule_nothing_is_guessed():
    state = {name: t for name, t in released_hart_state(tiny_hart()).items() if name != "lvl_1L"}
    with pytest.raises(CheckpointError, match="patch_nums and context_token"):
        open_hart(Tensors.of(state), {"patch_nums": list(TINY.sides)})


@pytest.mark.parametrize(
    "name", ["blocks.0.ada_lin.1.weight", "blocks.1.scale_shift_table", "pos_start", "lvl_embed.weight"]
)
def test_variants_that_would_draw_something_else_are_refused(name: str):
    state = released_hart_state(tiny_hart()) | {name: torch.zeros(1)}
    with pytest.raises(CheckpointError, match="variant"):
        hart_from_state(state, hart_settings(TINY))


def test_models_without_text_norm_and_with_cosine_attention_are_told_by_their_tensors():
    other = tiny_hart(context_norm=False, cosine=True)

    built = hart_from_state(released_hart_state(other), hart_settings(TINY))

    assert same(built, other) and "context_norm.weight" not in built.state_dict()
    assert built.config.cosine and not built.config.context_norm


def test_files_in_each_others_place_and_foreign_parts_are_refused(model: Path):
    transformer, tokenizer = model / "llm" / "ema_model.bin", model / "tokenizer"
    with pytest.raises(CheckpointError, match="seems to be a HART tokenizer, not a HART transformer"):
        load_hart(next(tokenizer.glob("*.bin")), tokenizer)
    with pytest.raises(CheckpointError, match="seems to be a HART transformer, not a HART tokenizer"):
        load_hart(transformer, transformer)
    other = {f"vae.{name}": t for name, t in tiny_tokenizer(codes=16).state_dict().items()}
    torch.save(other, tokenizer / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="use the tokenizer that came with the model"):
        load_hart(transformer, tokenizer)


def test_the_mask_of_training_is_never_read(model: Path):
    state = open_tensors(model / "llm" / "ema_model.bin")
    assert [name for name in open_hart(state, hart_settings(TINY))[0] if UNUSED.fullmatch(name)] == []


def test_a_tokenizer_without_its_discriminator_loads_and_its_phi_count_is_told_by_its_tensors():
    state = {
        f"vae.{name}": t for name, t in tiny_tokenizer().state_dict().items() if "qresi_ls.3" not in name
    }
    assert len(tokenizer_from_state(state, {}).quantize.quant_resi["qresi_ls"]) == 3


# --- the library --------------------------------------------------------------------------------------------


def test_the_model_is_found_by_name_with_its_own_settings(model: Path):
    files = find_model("hart-0.7b", [model.parent])

    assert files.transformer == model / "llm" / "ema_model.bin" and files.text == model / "text"
    assert (files.cfg, files.tau, files.published.bounds) == (5.5, 1.0, {2: (80.0, 55.0)})
    assert files.schedule(1.0, files.area) == square_schedule(TINY.sides)
    assert files.sampling(1.0).top_p == 0


@pytest.mark.parametrize(("ratio", "area"), [(1.5, "1M"), (1.0, "0.25M")])
def test_other_shapes_than_the_models_own_are_refused(model: Path, ratio: float, area: str):
    with pytest.raises(ValueError, match="128 x 128 pictures only"):
        find_model(str(model), []).schedule(ratio, area)


def test_averaged_weights_come_first_and_others_are_taken_with_a_warning(
    model: Path, caplog: pytest.LogCaptureFixture
):
    (model / "llm" / "ema_model.bin").rename(model / "llm" / "pytorch_model.bin")

    files = find_model(str(model), [])

    assert files.transformer.name == "pytorch_model.bin"
    assert "averaged weights" in caplog.text


def test_what_is_missing_is_named(model: Path, tmp_path: Path):
    (model / "system_prompt.txt").unlink()
    with pytest.raises(CheckpointError, match="system_prompt.txt.*705 bytes"):
        find_model(str(model), [])
    (model / "system_prompt.txt").write_text("")  # none is wanted
    find_model(str(model), [])
    (model / "text" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="Qwen2-VL-1.5B-Instruct"):
        find_model(str(model), [])
    with pytest.raises(CheckpointError, match="hart-0.7b .* not found below"):
        find_model("hart-0.7b", [tmp_path / "empty"])


def test_the_survey_tells_a_complete_model_from_one_without_system_prompt(model: Path):
    def status():
        return next(s for s in survey([model.parent]) if s.name == "hart-0.7b")

    assert status().missing == () and status().vae == model / "tokenizer"
    (model / "system_prompt.txt").unlink()
    assert status().missing == ("Qwen2-VL-1.5B-Instruct and system_prompt.txt",)
