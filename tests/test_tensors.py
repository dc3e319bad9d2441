"""Reading and writing tensor files: containers, damage, code in pickles, conversion."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from builders import released_state, released_vae_state, same, tiny_transformer, tiny_vae, write_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfy_moss.model import tensors
from comfy_moss.model.checkpoint import transformer_from_state, vae_from_state
from comfy_moss.model.infinity import InfinityTransformer
from comfy_moss.model.tensors import CheckpointError, convert, open_tensors


class Payload:
    """Pickles to code that leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.fixture()
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights")


@pytest.fixture(scope="module")
def transformer() -> InfinityTransformer:
    return tiny_transformer()


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 2000, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_files_are_refused(
    tmp_path: Path, transformer: InfinityTransformer, suffix: str, keep: float
) -> None:
    path = tmp_path / f"model{suffix}"
    save_file(released_state(transformer), path) if suffix == ".safetensors" else torch.save(
        released_state(transformer), path
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 or keep == 0 else len(data) * keep)])
    with pytest.raises(CheckpointError, match=f"model{suffix} is (damaged|empty|no safetensors).*download"):
        open_tensors(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, legacy: bool) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "was-run"
    torch.save(
        {"a": torch.zeros(2), "args": Payload(marker)}, path, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(CheckpointError, match="holds program objects besides weights"):
        open_tensors(path)
    assert not marker.exists()


def test_a_download_stub_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "infinity_2b_reg.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="only a Git LFS pointer"):
        open_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model file at .*nothing.pth"):
        open_tensors(tmp_path / "nothing.pth")


# --- containers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_read(tmp_path: Path, transformer: InfinityTransformer, legacy: bool) -> None:
    torch.save(released_state(transformer), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert same(transformer_from_state(open_tensors(tmp_path / "a.pth")), transformer)


@pytest.mark.parametrize("nested", [False, True])
def test_vae_files_are_read_flat_and_nested(tmp_path: Path, nested: bool) -> None:
    state = released_vae_state(tiny_vae())
    torch.save(
        {"vae": state, "ema": {"encoder.x": torch.zeros(1)}} if nested else state, tmp_path / "vae.pth"
    )
    assert same(vae_from_state(open_tensors(tmp_path / "vae.pth")), tiny_vae())


def write_shards(folder: Path, state: dict[str, Tensor], kind: str) -> Path:
    folder.mkdir()
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        shard = f"model-{number + 1}-of-2.{kind}"
        shard_state = {name: state[name] for name in part}
        save_file(shard_state, folder / shard) if kind == "safetensors" else torch.save(
            shard_state, folder / shard
        )
        weight_map.update(dict.fromkeys(part, shard))
    (folder / f"model.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_read(tmp_path: Path, transformer: InfinityTransformer, kind: str) -> None:
    folder = write_shards(tmp_path / "infinity_8b_weights", released_state(transformer), kind)
    assert same(transformer_from_state(open_tensors(folder)), transformer)


def test_a_missing_shard_is_named(tmp_path: Path, transformer: InfinityTransformer) -> None:
    folder = write_shards(tmp_path / "shards", released_state(transformer), "safetensors")
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="lacks model-2-of-2.safetensors, which model.safetensors.index.json lists"
    ):
        open_tensors(folder)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path, transformer: InfinityTransformer) -> None:
    folder = write_shards(tmp_path / "shards", released_state(transformer), "safetensors")
    save_file({"head.weight": transformer.head.weight}, folder / "model-2-of-2.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model-2-of-2\.safetensors lacks the tensor .*; download the directory again"
    ):
        open_tensors(folder)


def test_shards_of_the_other_kind_serve_when_one_kind_is_incomplete(
    tmp_path: Path, transformer: InfinityTransformer
) -> None:
    folder = write_shards(tmp_path / "shards", released_state(transformer), "bin")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"head.bias": "model.safetensors"}}')
    assert same(transformer_from_state(open_tensors(folder)), transformer)


def test_an_index_cannot_reach_outside_of_its_directory(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"head.bias": "weights/transformer.safetensors"}}'
    )
    with pytest.raises(CheckpointError, match="index.json is damaged"):
        open_tensors(tmp_path)


def test_a_directory_with_one_model_file_is_read_and_with_two_is_refused(
    tmp_path: Path, weights: Path
) -> None:
    with pytest.raises(
        CheckpointError, match="should hold one model file.*transformer.safetensors, vae.safetensors"
    ):
        open_tensors(weights)
    (weights / "vae.safetensors").unlink()
    assert "head.bias" in open_tensors(weights)


# --- conversion ---------------------------------------------------------------------------------------------


def test_conversion_keeps_released_names_and_every_bit(
    tmp_path: Path, transformer: InfinityTransformer
) -> None:
    state = released_state(transformer)
    torch.save(state, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "new" / "out.safetensors")
    written = load_file(tmp_path / "new" / "out.safetensors")
    assert written.keys() == state.keys() and all(torch.equal(written[n], state[n]) for n in state)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.safetensors"]


def test_conversion_of_shards_to_bfloat16_halves_them(
    tmp_path: Path, transformer: InfinityTransformer
) -> None:
    state = {**released_state(transformer), "count": torch.tensor(70_000), "a_flag": torch.tensor([True])}
    convert(write_shards(tmp_path / "shards", state, "bin"), tmp_path / "out.safetensors", bf16=True)
    written = load_file(tmp_path / "out.safetensors")
    assert written.pop("count").item() == 70_000 and written.pop("a_flag").tolist() == [True]
    assert all(
        tensor.dtype == torch.bfloat16 and torch.equal(tensor, state[n].bfloat16())
        for n, tensor in written.items()
    )


def test_converted_tensors_lie_on_multiples_of_their_element_size(tmp_path: Path) -> None:
    torch.save(
        {"a": torch.tensor([True]), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.ones(2)},
        tmp_path / "in.pth",
    )
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    data = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    starts = {
        name: entry["data_offsets"][0]
        for name, entry in json.loads(data[8 : 8 + length]).items()
        if name in "abc"
    }
    assert length % 8 == 0 and starts == {"c": 0, "b": 8, "a": 14}


def test_conversion_drops_the_training_state_of_a_vae(tmp_path: Path) -> None:
    torch.save(
        {"vae": {**released_vae_state(tiny_vae()), "disc.weight": torch.zeros(9)}}, tmp_path / "vae.pth"
    )
    convert(tmp_path / "vae.pth", tmp_path / "vae.safetensors")
    assert load_file(tmp_path / "vae.safetensors").keys() == tiny_vae().state_dict().keys()


def test_conversion_never_overwrites_its_source(
    tmp_path: Path, weights: Path, transformer: InfinityTransformer
) -> None:
    with pytest.raises(CheckpointError, match="is the file to convert"):
        convert(weights / "vae.safetensors", weights / ".." / "weights" / "vae.safetensors")
    folder = write_shards(tmp_path / "shards", released_state(transformer), "safetensors")
    with pytest.raises(CheckpointError, match="is the file to convert"):
        convert(folder, folder / "model-1-of-2.safetensors")
    with pytest.raises(CheckpointError, match="should end in .safetensors"):
        convert(weights / "vae.safetensors", tmp_path / "out.pth")


def test_a_failed_conversion_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "out.safetensors"
    target.parent.mkdir()
    target.write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors.os, "replace", full_disk)
    with pytest.raises(
        CheckpointError, match="could not be written .No space left on device.; nothing was changed"
    ):
        convert(weights / "vae.safetensors", target)
    assert target.read_text() == "old" and [p.name for p in target.parent.iterdir()] == ["out.safetensors"]
