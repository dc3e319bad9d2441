"""Weights in 8 bits as ComfyUI stores them, and GGUF files: written, read back, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import released_state, released_vae_state, same, tiny_transformer, tiny_vae
from hart_builders import TINY as HART_TINY
from hart_builders import hart_settings, released_hart_state, tiny_hart
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from comfy_moss import cli
from comfy_moss.benchmarks import quantized as measured
from comfy_moss.model.checkpoint import load_infinity, transformer_from_state
from comfy_moss.model.hart_checkpoint import hart_from_state
from comfy_moss.model.layers import Layers
from comfy_moss.model.quantized_weights import FORMATS, pack, quantized, unpack
from comfy_moss.model.tensors import CheckpointError, Tensors, open_tensors

KINDS = sorted(FORMATS)
QKV = "block_chunks.0.module.0.sa.mat_qkv"


@pytest.fixture()
def plain(tmp_path: Path) -> Path:
    save_file(released_state(tiny_transformer()), tmp_path / "plain.safetensors")
    save_file(released_vae_state(tiny_vae()), tmp_path / "vae.safetensors")
    return tmp_path / "plain.safetensors"


def packed(plain: Path, kind: str) -> Path:
    target = plain.with_name(f"{kind}.safetensors")
    assert cli.main(["convert", str(plain), str(target), f"--{kind}"]) == 0
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_convert_stores_the_matrices_of_blocks_in_8_bits_and_marks_them(plain: Path, kind: str) -> None:
    state = load_file(packed(plain, kind))
    assert json.loads(bytes(state[f"{QKV}.comfy_quant"].tolist()))["format"] == FORMATS[kind]
    weight, scale = state[f"{QKV}.weight"], state[f"{QKV}.weight_scale"]
    assert weight.element_size() == 1 and scale.dtype == torch.float32
    assert scale.shape == (() if kind == "fp8" else (len(weight), 1))
    assert state["head.weight"].dtype == state[QKV.replace("mat_qkv", "q_bias")].dtype == torch.bfloat16
    before = load_file(plain)[f"{QKV}.weight"]
    off = (unpack(weight, scale) - before).abs().max() / before.abs().max()
    assert 0 < off < (1 / 16 if kind == "fp8" else 1 / 200)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_torch_gets_them_multiplied_out(plain: Path, kind: str) -> None:
    model = load_infinity(packed(plain, kind), plain.with_name("vae.safetensors")).transformer
    before = transformer_from_state(load_file(plain))
    weight, right = (one.blocks[1].ffn.fc2.weight for one in (model, before))
    assert weight.dtype == torch.float32 and torch.equal(weight, unpack(*pack(right, kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_read_them_get_them_as_they_are_stored(plain: Path, kind: str) -> None:
    class Linear(nn.Linear):
        """Takes what ComfyUI's layers take."""

        def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
            beside = [name for name in ("comfy_quant", "weight_scale") if prefix + name in state]
            self.told = {name: state.pop(prefix + name) for name in beside}
            self.weight = nn.Parameter(state[f"{prefix}weight"], requires_grad=False)
            super()._load_from_state_dict(state, prefix, *rest)

    class Operations:
        Embedding, LayerNorm, RMSNorm = nn.Embedding, nn.LayerNorm, nn.RMSNorm

    Operations.Linear = Linear
    asked = []
    layers = Layers(pick=lambda *question: (asked.append(question), Operations)[1])
    model = transformer_from_state(open_tensors(packed(plain, kind)), layers=layers)
    assert asked == [(torch.float32, torch.float32, True)]
    layer = model.blocks[0].sa.mat_qkv
    assert layer.weight.element_size() == 1 and layer.told.keys() == {"comfy_quant", "weight_scale"}
    assert model.head.weight.dtype == torch.float32 and not model.head.told


def test_older_files_are_read_by_their_own_names(plain: Path) -> None:
    state = load_file(packed(plain, "fp8"))
    names = {name: name.replace(".weight_scale", ".scale_weight") for name in state}
    old = {names[name]: value for name, value in state.items() if not name.endswith(".comfy_quant")}
    old["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    assert same(transformer_from_state(old), transformer_from_state(state))


def test_hart_is_stored_alike() -> None:
    state = Tensors.of(released_hart_state(tiny_hart()))
    model = hart_from_state(quantized(state, "int8"), hart_settings(HART_TINY))
    off = model.blocks[0].ffn.up_proj.weight - state["blocks.0.ffn.up_proj.weight"]
    assert 0 < off.abs().max() < 0.02


@pytest.mark.parametrize(
    ("told", "reason"),
    [({"format": "nvfp4"}, "stored as nvfp4"), ({"format": "int8_tensorwise", "convrot": True}, "rotated")],
)
def test_other_formats_are_refused_by_name(plain: Path, told: dict, reason: str) -> None:
    state = load_file(packed(plain, "int8"))
    state[f"{QKV}.comfy_quant"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=reason):
        transformer_from_state(state)


def test_a_mark_that_is_no_text_is_damage(plain: Path) -> None:
    state = load_file(packed(plain, "int8"))
    state[f"{QKV}.comfy_quant"] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="damaged"):
        transformer_from_state(state)


@pytest.mark.parametrize(
    ("source", "reason"), [("int8.safetensors", "already"), ("vae.safetensors", "holds no blocks")]
)
def test_only_plain_transformers_are_packed(plain: Path, source: str, reason: str) -> None:
    packed(plain, "int8")
    with pytest.raises(CheckpointError, match=reason):
        quantized(open_tensors(plain.with_name(source)), "fp8")


def test_layers_that_are_to_stay_do(plain: Path) -> None:
    target = plain.with_name("kept.safetensors")
    assert cli.main(["convert", str(plain), str(target), "--int8", "--keep", "ffn.fc2,sa.proj"]) == 0
    stored = {name.rpartition(".module.")[2][2:]: value.dtype for name, value in load_file(target).items()}
    assert stored["ffn.fc2.weight"] == stored["sa.proj.weight"] == torch.bfloat16
    assert stored["ca.proj.weight"] == stored["ffn.fc1.weight"] == torch.int8
    with pytest.raises(CheckpointError, match="no layer 'fc3'"):
        quantized(open_tensors(plain), "int8", ["fc3"])


def test_a_row_of_zeros_stays_zeros() -> None:
    weight = torch.randn(4, 8)
    weight[1] = 0
    for kind in KINDS:
        assert torch.equal(unpack(*pack(weight, kind))[1], weight[1])


def test_the_page_is_what_the_stored_measurement_makes() -> None:
    text = measured.PAGE.read_text()
    assert measured.page(text, json.loads(measured.RESULT.read_text())) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_file_is_told_before_it_is_written(plain: Path, kind: str) -> None:
    told, written = measured.size(open_tensors(plain), kind), packed(plain, kind).stat().st_size
    assert told < written < told + 32 * 1024  # names and places of the tensors


# --- GGUF ---------------------------------------------------------------------------------------------------


def write_gguf(path: Path, state: dict[str, Tensor], prefix: str = "") -> None:
    """Matrices of blocks in Q8_0, the rest in F32, as such files are made; leading axes of length 1 go."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "infinity")
    for name, tensor in state.items():
        values = tensor.float().numpy()
        while values.ndim > 1 and len(values) == 1:
            values = values[0]
        kind = gguf.GGMLQuantizationType.Q8_0
        if not (name.endswith(".weight") and values.ndim == 2 and values.shape[1] % 32 == 0):
            writer.add_tensor(prefix + name, values)
            continue
        writer.add_tensor(prefix + name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_gguf_file_is_read_back(tmp_path: Path, prefix: str) -> None:
    state = released_state(tiny_transformer())
    write_gguf(path := tmp_path / "infinity.gguf", state, prefix)
    model, right = transformer_from_state(open_tensors(path)), transformer_from_state(state)
    pairs = zip(model.state_dict().items(), right.state_dict().values(), strict=True)
    for (name, value), expected in pairs:
        off = (value - expected).abs().max()
        assert value.shape == expected.shape and off <= expected.abs().max() / 127, name
    assert torch.equal(model.cfg_uncond, right.cfg_uncond) and not torch.equal(
        model.blocks[0].sa.mat_qkv.weight, right.blocks[0].sa.mat_qkv.weight
    )


def test_a_damaged_gguf_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(40))
    with pytest.raises(CheckpointError, match=r"a\.gguf"):
        open_tensors(tmp_path / "a.gguf")


def test_without_the_package_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(40))
    with pytest.raises(CheckpointError, match="pip install gguf"):
        open_tensors(tmp_path / "a.gguf")
