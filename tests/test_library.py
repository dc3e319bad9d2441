"""Finding models on disk and saying what is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from builders import released_state, released_vae_state, tiny_transformer, tiny_vae, write_weights

from comfy_moss.model import catalog, library
from comfy_moss.model.catalog import default_roots
from comfy_moss.model.infinity import InfinityConfig
from comfy_moss.model.library import RELEASES, find_model, survey
from comfy_moss.model.schedule import PRESETS
from comfy_moss.model.tensors import CheckpointError


def fake_text(folder: Path, width: int = 32) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": width}))
    return folder


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture()
def shelf(tmp_path: Path) -> Path:
    """A models folder with all that the 2B model needs, in different places."""
    touch(tmp_path / "diffusion_models" / "infinity_2b_reg.pth", tmp_path / "vae" / "infinity_vae_d32reg.pth")
    fake_text(tmp_path / "text_encoders" / "flan-t5-xl", 2048)
    return tmp_path


@pytest.fixture()
def own_model(tmp_path: Path) -> Path:
    folder = write_weights(tmp_path / "mine")
    fake_text(folder / "text")
    return folder


def test_every_release_names_a_known_image_area() -> None:
    assert all(release.area in PRESETS for release in (*RELEASES.values(), library.EMBEDDED, library.UNKNOWN))


def test_a_released_model_is_found_by_its_file_names_anywhere_below_the_roots(shelf: Path) -> None:
    files = find_model("2B", [shelf / "nowhere", shelf])
    assert files.transformer == shelf / "diffusion_models" / "infinity_2b_reg.pth"
    assert files.vae == shelf / "vae" / "infinity_vae_d32reg.pth"
    assert files.text == shelf / "text_encoders" / "flan-t5-xl"
    assert (files.name, files.area, files.cfg, files.tau) == ("2b", "1M", 3.0, 0.5)


def test_a_converted_file_is_preferred(shelf: Path) -> None:
    touch(shelf / "vae" / "infinity_vae_d32reg.safetensors")
    assert find_model("2b", [shelf]).vae.name == "infinity_vae_d32reg.safetensors"


def test_a_sharded_transformer_is_a_directory(shelf: Path) -> None:
    touch(shelf / "infinity_8b_512x512_weights" / "model.safetensors", shelf / library.VAE56)
    files = find_model("8b-512", [shelf])
    assert files.transformer == shelf / "infinity_8b_512x512_weights" and files.area == "0.25M"


def test_the_namesake_of_the_2b_vae_is_not_taken(shelf: Path) -> None:
    (shelf / "vae" / "infinity_vae_d32reg.pth").rename(shelf / "vae" / "infinity_vae_d32.pth")
    with pytest.raises(
        CheckpointError, match="the model 2b is incomplete: infinity_vae_d32reg.pth not found below"
    ):
        find_model("2b", [shelf])


def test_everything_missing_is_listed_with_released_names(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="infinity_125M_256x256.pth, infinity_vae_d16.pth, flan-t5-xl not found below"
    ):
        find_model("125m", [tmp_path])


def test_the_text_encoder_is_found_in_the_hubs_cache_layout(shelf: Path) -> None:
    (shelf / "text_encoders" / "flan-t5-xl" / "config.json").unlink()
    snapshot = fake_text(shelf / "hub" / "models--google--flan-t5-xl" / "snapshots" / "0123abcd")
    assert find_model("2b", [shelf]).text == snapshot


def test_the_larger_text_encoder_is_not_taken(shelf: Path) -> None:
    (shelf / "text_encoders" / "flan-t5-xl").rename(shelf / "text_encoders" / "flan-t5-xxl")
    with pytest.raises(CheckpointError, match="flan-t5-xl not found"):
        find_model("2b", [shelf])


def test_links_are_followed_and_loops_end(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("linked")
    (root / "models").symlink_to(shelf, target_is_directory=True)
    (shelf / "loop").symlink_to(root, target_is_directory=True)
    assert find_model("2b", [root]).vae == root / "models" / "vae" / "infinity_vae_d32reg.pth"
    assert [e.name for e in catalog.model_entries([root, shelf])].count("infinity_vae_d32reg.pth") == 1


def test_a_directory_is_a_model(own_model: Path) -> None:
    files = find_model(str(own_model), [])
    assert (
        files.transformer == own_model / "transformer.safetensors"
        and files.vae == own_model / "vae.safetensors"
    )
    assert files.text == own_model / "text" and files.area == "1M"


def test_the_folder_called_text_comes_before_other_text_encoders(own_model: Path) -> None:
    fake_text(own_model / "flan-t5-xl", 2048)
    assert find_model(str(own_model), []).text == own_model / "text"


def test_files_of_a_directory_are_recognised_by_their_contents(own_model: Path) -> None:
    torch.save(released_state(tiny_transformer()), own_model / "network.pth")
    torch.save({"vae": released_vae_state(tiny_vae())}, own_model / "codec.pth")
    (own_model / "transformer.safetensors").unlink()
    (own_model / "vae.safetensors").unlink()
    (own_model / "text").rename(own_model / "encoder")
    files = find_model(str(own_model), [])
    assert [p.name for p in (files.transformer, files.vae, files.text)] == [
        "network.pth", "codec.pth", "encoder",
    ]


def test_of_two_copies_of_the_transformer_one_is_taken_and_the_log_says_which(
    own_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_model / "transformer.safetensors").rename(own_model / "a.safetensors")
    torch.save(released_state(tiny_transformer()), own_model / "b.pth")
    with caplog.at_level("INFO"):
        assert find_model(str(own_model), []).transformer.name == "a.safetensors"
    assert "a.safetensors is taken as the transformer, not" in caplog.text and "b.pth" in caplog.text
    assert find_model(str(own_model / "b.pth"), []).transformer.name == "b.pth"


def test_what_a_directory_lacks_is_listed(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"lacks transformer.safetensors, vae.safetensors, text \(the text encoder\)"
    ):
        find_model(str(tmp_path), [])


def test_a_directory_without_text_encoder_borrows_one_from_the_roots(own_model: Path, tmp_path: Path) -> None:
    (own_model / "text" / "config.json").unlink()
    shared = fake_text(tmp_path / "shelf" / "flan-t5-xl")
    assert find_model(str(own_model), [tmp_path / "shelf"]).text == shared


def test_a_release_under_its_own_name_in_a_directory_gets_its_settings(tmp_path: Path) -> None:
    touch(tmp_path / "infinity_8b_512x512_weights" / "x.safetensors", tmp_path / library.VAE56)
    fake_text(tmp_path / "text", 2048)
    files = find_model(str(tmp_path), [])
    assert (files.area, files.cfg, files.tau) == ("0.25M", 3.0, 1.0)


def test_a_renamed_release_is_recognised_by_its_width(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = InfinityConfig(12, 768, 8, 3072, 16, 2048, 16, 512, 15)
    monkeypatch.setattr(library, "open_transformer", lambda tensors: (tensors, config))
    assert find_model(str(own_model), []).area == "0.06M"


def test_the_embedded_model_is_looked_for_in_the_pack(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library.NANO_FOLDER.parts[-3:] == ("comfy_moss", "assets", "nano")
    monkeypatch.setattr(library, "NANO_FOLDER", own_model)
    files = find_model("nano", [])
    settings = library.EMBEDDED
    assert files.vae.parent == own_model
    assert (files.area, files.cfg, files.tau) == (settings.area, settings.cfg, settings.tau)
    monkeypatch.setattr(library, "NANO_FOLDER", own_model / "absent")
    with pytest.raises(CheckpointError, match="absent lacks transformer.safetensors"):
        find_model("nano", [])


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    names = "nano, 125m, 2b, 8b, 8b-512, varedit-8b-1024, varedit-8b-512, varedit-2b-512, nsarm, hart-0.7b"
    with pytest.raises(CheckpointError, match=f"no model '20b'; choose {names} or a directory"):
        find_model("20b", [tmp_path])


def test_a_survey_tells_found_from_missing(shelf: Path, own_model: Path) -> None:
    found = {status.name: status for status in survey([shelf])}
    tunes = ["varedit-8b-1024", "varedit-8b-512", "varedit-2b-512", "nsarm"]
    assert list(found) == ["nano", "125m", "2b", "8b", "8b-512", *tunes, "hart-0.7b", str(own_model)]
    assert found["2b"].missing == () and found["2b"].vae == shelf / "vae" / "infinity_vae_d32reg.pth"
    assert found["8b"].missing == ("infinity_8b_weights", "infinity_vae_d56_f8_14_patchify.pth")
    assert found["125m"].expected == ("infinity_125M_256x256.pth", "infinity_vae_d16.pth", "flan-t5-xl")
    assert found[str(own_model)].missing == () and found[str(own_model)].text == own_model / "text"


def test_roots_come_from_the_environment_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOSS_MODELS", f"{tmp_path}{os.pathsep}{tmp_path / 'more'}")
    assert default_roots()[:3] == (tmp_path, tmp_path / "more", Path("models"))
    monkeypatch.delenv("MOSS_MODELS")
    assert default_roots() == (Path("models"), Path.home() / "ComfyUI" / "models")
