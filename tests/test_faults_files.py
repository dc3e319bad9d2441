"""Model files as people have them: every wrapper, leftover and place of `real_files`, and files of other
models.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import real_files
import torch
from builders import released_state, released_vae_state, same, tiny_transformer, tiny_vae, write_model
from safetensors.torch import load_file, save_file

from comfy_moss.model import catalog, contents, library
from comfy_moss.model.catalog import default_roots
from comfy_moss.model.checkpoint import load_infinity, open_vae, transformer_from_state, vae_from_state
from comfy_moss.model.infinity import InfinityTransformer
from comfy_moss.model.library import find_model
from comfy_moss.model.tensors import CheckpointError, convert, open_tensors
from comfy_moss.model.text import QWEN


@pytest.fixture(scope="module")
def transformer() -> InfinityTransformer:
    return tiny_transformer()


@pytest.fixture()
def model(tmp_path: Path, model_dir: Path) -> Path:
    """A complete model in a folder that a test may change."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


# --- 1 and 2: what trainers write ---------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", real_files.WRAPPERS)
def test_the_weights_are_found_in_every_wrapper(
    tmp_path: Path, transformer: InfinityTransformer, wrapper: str, legacy: bool
) -> None:
    content = real_files.WRAPPERS[wrapper](released_state(transformer))
    torch.save(content, tmp_path / "ar-ckpt.pth", _use_new_zipfile_serialization=not legacy)
    assert same(transformer_from_state(open_tensors(tmp_path / "ar-ckpt.pth")), transformer)


@pytest.mark.parametrize(
    "wrapper",
    ["DDP", "torch.compile in DDP", "LitEma", "FSDP with its wrappers", "a trainer with a gpt in it"],
)
def test_prefixes_are_seen_through_in_safetensors_too(
    tmp_path: Path, transformer: InfinityTransformer, wrapper: str
) -> None:
    state = real_files.WRAPPERS[wrapper](released_state(transformer))
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "a.safetensors")
    assert same(transformer_from_state(open_tensors(tmp_path / "a.safetensors")), transformer)


@pytest.mark.parametrize("data", real_files.DATA)
def test_data_beside_the_weights_is_no_code(
    tmp_path: Path, transformer: InfinityTransformer, data: str
) -> None:
    torch.save({"model": released_state(transformer), "extra": [real_files.DATA[data]]}, tmp_path / "a.pth")
    assert same(transformer_from_state(open_tensors(tmp_path / "a.pth")), transformer)


@pytest.mark.parametrize(
    "module",
    [
        "omegaconf.dictconfig.DictConfig",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "numpy.core.multiarray.scalar",
    ],
)
def test_objects_of_libraries_that_are_not_installed_are_no_obstacle(tmp_path: Path, module: str) -> None:
    """Their names stand in the file; nothing by those names is looked up."""
    assert contents._stand_in(module) is not None


class Call:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch was-run"),
        (eval, "1"),
        (exec, "1"),
        (getattr, "a", "upper"),
        (__import__, "os"),
        (print, "was run"),
        (open, "was-run", "w"),
        (os.mkdir, "was-run"),
        (pickle.loads, b"N."),
        (torch.load, "x"),
        (torch.nn.Linear, 1, 1),
        (map, str, "a"),
    ],
    ids=lambda call: getattr(call[0], "__name__", str(call[0])),
)
def test_true_code_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"a": torch.zeros(2), "args": Call(*call)}, "model.pth", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(
        CheckpointError, match="model.pth holds program objects besides weights.*get the safetensors version"
    ):
        open_tensors(tmp_path / "model.pth")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("version", ["2.5.1+cu124", "2.4.0", "2.2.2+cpu"])
def test_old_versions_of_torch_read_no_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    state = released_state(tiny_transformer())
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(
        CheckpointError,
        match=r"a.pth is a PyTorch file.*CVE-2025-32434.*safetensors version, or update torch to 2.6",
    ):
        open_tensors(tmp_path / "a.pth")
    assert "head.bias" in open_tensors(tmp_path / "a.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.10.0a0")
    assert "head.bias" in open_tensors(tmp_path / "a.pth")


def test_other_archives_are_named(tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", Path(__file__).parent.parent / "workflows")
    (tmp_path / "packed.zip").rename(tmp_path / "packed.pth")
    with pytest.raises(CheckpointError, match="packed.pth is a zip archive; unpack it"):
        open_tensors(tmp_path / "packed.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/code/model.py", "script/constants.pkl", "script/data.pkl"):
            archive.writestr(name, b"")
    with pytest.raises(CheckpointError, match="script.pt is a TorchScript program"):
        open_tensors(tmp_path / "script.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "new.pt", pickle_protocol=4)
    with pytest.raises(
        CheckpointError, match="new.pt was saved with a pickle protocol.*save its weights again"
    ):
        open_tensors(tmp_path / "new.pt")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"<!DOCTYPE html>", "a page of the web"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"Rar!\x1a", "a packed archive"),
        (b"\x00\x05\x16\x07\x00", "a stub of Finder"),
        (b"", "empty"),
        (b'{"error": 404}', "no safetensors or PyTorch file"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, head: bytes, words: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(head)
    with pytest.raises(CheckpointError, match=f"a.safetensors is {words}"):
        open_tensors(tmp_path / "a.safetensors")


def test_parts_of_weights_are_told_to_be_joined(tmp_path: Path) -> None:
    state = released_state(tiny_transformer())
    torch.save({"module": {name: torch.zeros(0) for name in state}}, tmp_path / "zero3.pt")
    torch.save({"_fsdp_wrapped_module._flat_param": torch.zeros(9)}, tmp_path / "flat.pt")
    for name in ("zero3.pt", "flat.pt"):
        with pytest.raises(CheckpointError, match=f"{name} holds only a part of its weights.*join the parts"):
            open_tensors(tmp_path / name)


def test_an_unfinished_download_is_told_from_the_file_beside_it(model: Path) -> None:
    (model / "transformer.safetensors.aria2").touch()
    with pytest.raises(
        CheckpointError, match="is not fully downloaded yet: transformer.safetensors.aria2 lies beside it"
    ):
        open_tensors(model / "transformer.safetensors")


def test_conversion_writes_the_weights_without_their_wrapper(
    tmp_path: Path, transformer: InfinityTransformer
) -> None:
    path = real_files.save_wrapped(tmp_path / "ar-ckpt.pth", "Infinity's trainer, averaged for pictures")
    convert(path, tmp_path / "plain.safetensors")
    assert load_file(tmp_path / "plain.safetensors").keys() == released_state(transformer).keys()


# --- 3 and 11: what lies beside a model ---------------------------------------------------------------------


def names_of(files: library.ModelFiles) -> tuple[str, str, str]:
    return files.transformer.name, files.vae.name, files.text.name


@pytest.mark.parametrize("wanted", ["transformer.safetensors", "vae.safetensors"])
def test_a_model_is_found_among_litter(model: Path, wanted: str) -> None:
    real_files.litter(model, wanted)
    real_files.litter(model / "text", "model.safetensors")
    files = find_model(str(model), [])
    assert names_of(files) == ("transformer.safetensors", "vae.safetensors", "text")
    files.load_text().encode(["a red circle"])
    assert files.load().width == 32


@pytest.mark.parametrize(
    "litter",
    ["._net.pth", "training_args.bin", "optimizer.bin", "empty.safetensors", "page.safetensors", "half.pth"],
)
def test_one_stray_file_beside_a_model_told_by_content_does_no_harm(model: Path, litter: str) -> None:
    torch.save(released_state(tiny_transformer()), model / "network.pth")
    torch.save({"vae": released_vae_state(tiny_vae())}, model / "codec.pth")
    for name in ("transformer.safetensors", "vae.safetensors"):
        (model / name).unlink()
    content = {"page.safetensors": b"<html>", "half.pth": (model / "network.pth").read_bytes()[:3000]}.get(
        litter, b""
    )
    (model / litter).write_bytes(content)
    assert names_of(find_model(str(model), [])) == ("network.pth", "codec.pth", "text")


@pytest.mark.parametrize(
    "copies",
    [
        ("model.safetensors", "model.fp16.safetensors"),
        ("model.safetensors", "pytorch_model.bin"),
        ("a.safetensors", "a.bf16.safetensors"),
        ("a.safetensors", "a (1).safetensors"),
        ("a.safetensors", "a.pth"),
        ("a.safetensors", "a-copy.safetensors"),
    ],
)
def test_of_several_copies_the_canonical_one_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, copies: tuple
) -> None:
    state = released_state(tiny_transformer())
    for name in copies:
        half = {key: tensor.half() for key, tensor in state.items()}
        torch.save(half, tmp_path / name) if name.endswith((".bin", ".pth")) else save_file(
            half, tmp_path / name
        )
    save_file(state, tmp_path / copies[0])
    with caplog.at_level("INFO"):
        assert open_tensors(tmp_path)["head.bias"].dtype == torch.float32
    assert f"{copies[0]} is taken, not {copies[1]}" in caplog.text


def test_the_parts_that_fit_are_taken_whatever_their_names(model: Path) -> None:
    real_files.write_transformer(model / "a.safetensors", bits=16)
    real_files.write_vae(model / "a_vae.safetensors", channels=12)
    real_files.write_text(model / "a_text", width=64)
    for old, new in (
        ("transformer.safetensors", "b.safetensors"),
        ("vae.safetensors", "b_vae.safetensors"),
        ("text", "b_text"),
    ):
        (model / old).rename(model / new)
    assert names_of(find_model(str(model), [])) == ("b.safetensors", "b_vae.safetensors", "b_text")


def test_a_text_encoder_that_is_not_whole_is_passed_over(model: Path, tmp_path: Path) -> None:
    shutil.rmtree(model / "text")
    broken = tmp_path / "shelf" / "a" / "flan-t5-xl"
    real_files.write_text(broken)
    (broken / "model.safetensors").unlink()
    whole = real_files.write_text(tmp_path / "shelf" / "b" / "flan-t5-xl")
    assert find_model(str(model), [tmp_path / "shelf"]).text == whole


@pytest.mark.parametrize("name", ["transformer.safetensors", "mine.pth"])
def test_a_file_can_be_named_as_the_model(model: Path, name: str) -> None:
    if name.endswith(".pth"):
        torch.save(load_file(model / "transformer.safetensors"), model / name)
    assert names_of(find_model(str(model / name), [])) == (name, "vae.safetensors", "text")


def test_what_lies_there_instead_is_told(model: Path) -> None:
    (model / "vae.safetensors").unlink()
    save_file(tiny_vae(channels=5).state_dict(), model / "other.safetensors")
    (model / "vae.safetensors").write_bytes(b"")
    (model / "transformer.safetensors").rename(model / "t.safetensors")
    with pytest.raises(CheckpointError, match="vae.safetensors is empty"):
        find_model(str(model), []).load()
    shutil.rmtree(model / "text")
    with pytest.raises(CheckpointError, match=r"lacks text .*Beside it lie other.safetensors \(a VAE\)"):
        find_model(str(model), [])


# --- 4: places ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_files.write_hart(tmp_path_factory.mktemp("places") / "models" / "hart")


@pytest.mark.parametrize("inner", ["", "llm", "tokenizer", "llm/ema_model.bin", "llm/", "."])
def test_any_part_of_a_hart_model_means_the_model(hart: Path, inner: str) -> None:
    assert find_model(f"{hart}/{inner}", []).transformer == hart / "llm" / "ema_model.bin"


@pytest.mark.parametrize("root", ["", "..", "llm"])
def test_a_hart_model_is_found_where_the_root_is_the_model(hart: Path, root: str) -> None:
    assert find_model("hart-0.7b", [(hart / root).resolve()]).folder == hart


@pytest.mark.parametrize("name", ["hart", "HART-0.7B", "hart_0.7b"])
def test_a_hart_model_is_known_by_its_names(hart: Path, name: str) -> None:
    assert find_model(name, [hart.parent]).folder == hart


def test_hubs_cache_holds_hart_and_its_text_model(hart: Path, tmp_path: Path) -> None:
    shutil.copytree(hart, tmp_path / "plain")
    shutil.move(tmp_path / "plain" / "text", tmp_path / "qwen")
    snapshot = real_files.hub_cache(tmp_path / "hub", "mit-han-lab/hart-0.7b-1024px", tmp_path / "plain")
    text = real_files.hub_cache(tmp_path / "hub", f"mit-han-lab/{QWEN}", tmp_path / "qwen")
    for asked, roots in (
        ("hart-0.7b", [tmp_path / "hub"]),
        (str(snapshot.parent.parent), [tmp_path / "hub"]),
        (str(snapshot), [tmp_path]),
    ):
        files = find_model(asked, roots)
        assert (files.folder, files.text) == (snapshot, text)


@pytest.mark.parametrize("name", ["2b", "2B", "Infinity-2B", "infinity_2b", "infinity-2b-reg"])
def test_a_release_is_known_by_its_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="the model 2b is incomplete: infinity_2b_reg.pth"):
        find_model(name, [tmp_path])


@pytest.mark.parametrize("folder", ["checkpoints", "diffusion_models", "unet", "infinity", "", "a/b/c"])
def test_every_folder_below_the_models_folder_is_looked_into(tmp_path: Path, folder: str) -> None:
    models = real_files.portable(tmp_path) / "models"
    for place, name in ((folder, "infinity_2b_reg.pth"), ("vae", "infinity_vae_d32reg.pth")):
        (models / place).mkdir(parents=True, exist_ok=True)
        (models / place / name).touch()
    real_files.write_text(models / "text_encoders" / "flan-t5-xl")
    for root in (models, models.parent):
        assert find_model("2b", [root]).transformer == models / folder / "infinity_2b_reg.pth"


def test_a_model_is_found_in_the_snapshot_of_a_cache(model: Path, tmp_path: Path) -> None:
    snapshot = real_files.hub_cache(tmp_path / "hub", "someone/their-infinity", model)
    for place in (snapshot, snapshot.parent.parent):
        assert find_model(str(place), []).transformer == snapshot / "transformer.safetensors"


def test_the_comfyui_that_the_pack_lies_in_and_the_hubs_cache_are_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comfyui = real_files.portable(tmp_path)
    fake = comfyui / "custom_nodes" / "ComfyUI-MoSs" / "comfy_moss" / "model" / "catalog.py"
    monkeypatch.setattr(catalog, "__file__", str(fake))
    cached = tmp_path / "hf" / "hub" / "models--FoundationVision--Infinity"
    cached.mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MOSS_MODELS", f'"{tmp_path}"')
    assert {tmp_path, comfyui / "models", cached, Path("models")} <= set(default_roots())


@pytest.mark.parametrize("text", ['"{}"', "'{}'", "{}/", " {} ", "~/model", "$HOME/model", "file://{}"])
def test_places_are_understood_as_people_type_them(
    model: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert find_model(text.format(model), []).transformer == model / "transformer.safetensors"


@pytest.mark.parametrize(
    "text", ["", " ", "nothing", "a\0b", "x" * 3000, "/nowhere/at all", "\\\\server\\share", "models/2b"]
)
def test_what_is_no_place_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(CheckpointError, match="there is no model .*; choose nano, 125m"):
        find_model(text, [])


# --- 5 and 6: files of other models -------------------------------------------------------------------------


def codec(**changes: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone() for name, tensor in released_vae_state(tiny_vae(channels=8)).items()
    } | changes


def without_levels(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias"): t for name, t in state.items()
    }


def diffusers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        n.replace("down.", "down_blocks.").replace("up.", "up_blocks.").replace("block.", "resnets."): t
        for n, t in state.items()
    }


ONE = torch.zeros(32, 32, 1, 1)
FOREIGN = {
    "VAR": (
        {"encoder.mid.attn_1.qkv.weight": ONE, "quantize.embedding.weight": torch.zeros(64, 8)},
        "attention",
    ),
    "a codebook alone": ({"quantize.embedding.weight": torch.zeros(64, 8)}, "codebook"),
    "VQGAN": (
        {"decoder.up.1.attn.0.q.weight": ONE, "quantize.embed.weight": torch.zeros(64, 8)},
        "attention",
    ),
    "LlamaGen": (
        {"quantize.codebook_used": torch.zeros(4), "quantize.embedding.weight": torch.zeros(64, 8)},
        "codebook",
    ),
    "LDM": ({"encoder.mid.attn_1.q.weight": ONE, "quant_conv.weight": ONE.clone()}, "attention"),
    "SDXL": (
        {"encoder.mid.attn_1.q.weight": ONE, "encoder.conv_out.conv.weight": torch.zeros(16, 32, 3, 3)},
        "attention",
    ),
    "FLUX without attention": (
        {"encoder.conv_out.conv.weight": torch.zeros(16, 32, 3, 3)},
        "a mean and a variance",
    ),
    "a codec of videos": ({"encoder.conv_in.conv.weight": torch.zeros(32, 3, 3, 3, 3)}, "codes videos"),
    "MaskGIT": ({"quantizer.codebook.weight": torch.zeros(64, 8)}, "codebook"),
    "to_q": ({"decoder.mid.attentions.0.to_q.weight": ONE}, "attention"),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["flat", "prefixed"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_codec_of_another_family_is_refused_by_name(model: Path, kind: str, wrapped: bool) -> None:
    changes, reason = FOREIGN[kind]
    state = codec(**changes)
    path = model / "ae.safetensors"
    save_file(real_files.prefixed(state, "first_stage_model.") if wrapped else state, path)
    message = (
        f"is a VAE that does not belong to transformer.safetensors: .*{reason}.*; use the VAE that came with"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        load_infinity(model / "transformer.safetensors", path)
    assert "download" not in str(caught.value) and "damaged" not in str(caught.value)


@pytest.mark.parametrize("change", [without_levels, lambda s: s])
def test_our_own_codecs_are_not_foreign(change: Any) -> None:
    assert same(vae_from_state(change(codec())), tiny_vae(channels=8))


def test_the_codec_that_belongs_is_named(tmp_path: Path) -> None:
    real_files.write_transformer(tmp_path / "infinity_2b_reg.pth", bits=32)
    save_file(codec(**FOREIGN["VAR"][0]), tmp_path / "vae_ch160v4096z32.safetensors")
    save_file(diffusers(codec()), tmp_path / "diffusion_pytorch_model.safetensors")
    for name in ("vae_ch160v4096z32", "diffusion_pytorch_model"):
        with pytest.raises(
            CheckpointError,
            match=f"{name}.* does not belong to infinity_2b_reg.pth: .*; use infinity_vae_d32reg.pth",
        ):
            load_infinity(tmp_path / "infinity_2b_reg.pth", tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "surplus",
    [
        "block_chunks.0.module.0.sa.lora_A.weight",
        "block_chunks.0.module.0.sa.mat_qkv.weight_scale",
        "block_chunks.0.module.0.moe.gate",
        "block_chunks.1.module.0.sa.mat_qkv.absmax",
        "block_chunks.0.module.0.ip_adapter.to_k.weight",
    ],
)
def test_more_inside_of_the_blocks_means_another_model(surplus: str) -> None:
    state = released_state(tiny_transformer()) | {surplus: torch.zeros(2)}
    with pytest.raises(
        CheckpointError, match="which this model does not: it is of another one, quantised, or an adapter"
    ):
        transformer_from_state(state)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_plain_numbers_are_refused(dtype: torch.dtype) -> None:
    state = released_state(tiny_transformer())
    state["head.weight"] = state["head.weight"].to(dtype)
    with pytest.raises(CheckpointError, match="head.weight holds .* and no plain weights"):
        transformer_from_state(state)


def test_a_healthy_file_is_never_called_damaged(tmp_path: Path) -> None:
    for drop in ("head.weight", "pos_start", "block_chunks.0.module.0.ffn.fc1.weight", "cfg_uncond"):
        state = released_state(tiny_transformer())
        del state[drop]
        with pytest.raises(
            CheckpointError, match=r"(lacks the tensors? .*|no sizes that fit together).*a part of a model"
        ) as caught:
            transformer_from_state(state)
        assert "download" not in str(caught.value)
    with pytest.raises(CheckpointError, match="seems to be an Infinity transformer, not a VAE"):
        open_vae(open_tensors(real_files.save_wrapped(tmp_path / "a.pth", "state_dict")))


# --- 10: what changes under a name --------------------------------------------------------------------------


def shards(model: Path) -> Path:
    folder = model / "infinity_8b_weights"
    folder.mkdir()
    shutil.move(model / "transformer.safetensors", folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    "changed",
    ["shard", "vae.safetensors", "text/model.safetensors", "text/tokenizer.json", "text/config.json"],
)
def test_the_stamp_changes_with_every_file_that_is_read(model: Path, changed: str) -> None:
    shard = shards(model)
    path = shard if changed == "shard" else model / changed
    files = find_model(str(model), [])
    before, told = files.stamp, path.stat()
    assert find_model(str(model), []).stamp == before
    with path.open("r+b") as file:  # in place: the folder's time stays
        file.write(file.read(1))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns + 1000))
    assert files.stamp != before


def test_the_stamp_changes_with_the_size_at_an_equal_time(model: Path) -> None:
    files = find_model(str(model), [])
    before, told = files.stamp, files.vae.stat()
    with files.vae.open("ab") as file:
        file.write(b"\0")
    os.utime(files.vae, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert files.stamp != before


@pytest.mark.parametrize(
    "changed",
    [
        "llm/ema_model.bin",
        "llm/config.json",
        "tokenizer/pytorch_model.bin",
        "system_prompt.txt",
        "text/config.json",
    ],
)
def test_the_stamp_of_hart_covers_its_settings(hart: Path, changed: str) -> None:
    files = find_model(str(hart), [])
    before = files.stamp
    os.utime(hart / changed, (1, 1))
    assert files.stamp != before


# --- 13 and 14: menus ---------------------------------------------------------------------------------------


def test_headers_are_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(catalog, "open_tensors", lambda path: opened.append(path.name) or open_tensors(path))
    paths = [model / "transformer.safetensors", model / "vae.safetensors"]
    for _ in range(3):
        assert [catalog.kind_of(path) for path in paths] == ["an Infinity transformer", "a VAE"]
    assert sorted(opened) == ["transformer.safetensors", "vae.safetensors"]
    os.utime(model / "vae.safetensors", (1, 1))
    catalog.kind_of(model / "vae.safetensors")
    assert opened.count("vae.safetensors") == 2


def test_many_files_are_listed_without_asking_about_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in range(10):
        (tmp_path / str(folder)).mkdir()
        for number in range(100):
            (tmp_path / str(folder) / f"{number}.txt").touch()
    asked: list[Path] = []
    monkeypatch.setattr(Path, "is_dir", lambda self: asked.append(self))
    assert len(catalog.model_entries([tmp_path])) == 11 and asked == []


# --- 19: exceptions of others -------------------------------------------------------------------------------

CONFIGS = {
    "d_kv": "8",
    "num_heads": 0,
    "num_layers": 10**9,
    "feed_forward_proj": "nothing",
    "d_model": -1,
    "vocab_size": None,
    "d_ff": [1],
    "relative_attention_max_distance": 0,
    "relative_attention_num_buckets": "x",
    "model_type": 7,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_number_in_config_json_is_told_with_the_file(model: Path, name: str) -> None:
    import json

    file = model / "text" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: CONFIGS[name]}))
    with pytest.raises(
        CheckpointError, match=r"text(/config.json)? (does not fit|holds|has|is damaged|lacks)"
    ):
        from comfy_moss.model.text import TextEncoder

        TextEncoder.load(model / "text")


@pytest.mark.parametrize(
    "content", ["{}", "[]", "", "null", '{"model": {}}', "\ufeff{", '{"a": NaN}', "PK", "<html>"]
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_another_json_is_told_with_the_file(model: Path, file: str, content: str) -> None:
    from comfy_moss.model.text import TextEncoder

    (model / "text" / file).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{file} is damaged|holds a nameless model"):
        TextEncoder.load(model / "text")


def test_a_tokenizer_that_does_not_know_unknown_words_is_told_when_it_meets_one(model: Path) -> None:
    import json

    from comfy_moss.model.text import TextEncoder

    file = model / "text" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["unk_token"] = "[UNK]"
    file.write_text(json.dumps(content))
    encoder = TextEncoder.load(model / "text")
    with pytest.raises(CheckpointError, match="tokenizer.json is damaged"):
        encoder.encode(["xylophone"])
    content["model"]["vocab"]["red"] = 10**6
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="makes token 1000000 and the text encoder knows"):
        TextEncoder.load(model / "text").encode(["red"])


def test_a_file_that_may_not_be_read_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match=r"vae.safetensors cannot be read \(Permission denied\); check"):
        open_tensors(model / "vae.safetensors")


def test_a_complete_model_still_loads(tmp_path: Path) -> None:
    files = find_model(str(write_model(tmp_path / "own")), [])
    assert files.load().width == 32
