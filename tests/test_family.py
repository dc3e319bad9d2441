"""What an Infinity file is taken for, and how its family travels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builders import released_state, released_vae_state, tiny_text_dir, tiny_transformer, tiny_vae
from safetensors.torch import save_file
from tune_builders import MAPS, tiny_enlarge

from comfy_moss import cli
from comfy_moss.doctor import report
from comfy_moss.model.checkpoint import load_infinity
from comfy_moss.model.family import HEADS_KEY, INFINITY, NSARM, VAREDIT, facts, family_of
from comfy_moss.model.infinity import InfinityBackbone
from comfy_moss.model.library import assemble, find_model
from comfy_moss.model.nsarm import EnlargeBackbone
from comfy_moss.model.tensors import CheckpointError, convert, open_tensors
from comfy_moss.model.varedit import EditBackbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of both VAREdit's and Infinity's names, all of one model, with its codec and text encoder."""
    models = tmp_path / "models"
    tiny_text_dir(models / "flan-t5-xl")
    for name in ("8B-512", "8B-1024", "own", "varedit_own_512", "infinity_8b_512x512_weights"):
        save_file(released_state(tiny_transformer()), models / f"{name}.safetensors")
    save_file(released_vae_state(tiny_vae()), models / "vae.safetensors")
    return models


@pytest.mark.parametrize(
    "name, family, area",
    [
        ("8B-512", VAREDIT, "0.25M"), ("8B-1024", VAREDIT, "1M"), ("varedit_own_512", VAREDIT, "0.25M"),
        ("own", INFINITY, None), ("infinity_8b_512x512_weights", INFINITY, None),
    ],
)
def test_a_file_is_taken_for_a_family_by_its_name(folder, name, family, area):
    found = family_of(open_tensors(folder / f"{name}.safetensors"))

    assert (found.name, found.area) == (family, area)
    assert "name" in found.reason or family == INFINITY and "nothing marks it" in found.reason


def test_a_folder_of_the_hub_tells_too(folder):
    inside = folder / "models--HiDream-ai--VAREdit" / "snapshots" / "0" / "model.safetensors"
    inside.parent.mkdir(parents=True)
    shutil.copy(folder / "own.safetensors", inside)

    assert family_of(open_tensors(inside)).name == VAREDIT


def test_the_choice_of_the_artist_decides(folder):
    path = folder / "own.safetensors"

    files = assemble(path, None, None, [folder], VAREDIT)

    assert isinstance(files.load(), EditBackbone) and "taken for VAREdit as chosen" in files.told
    assert type(assemble(path, None, None, [folder]).load()) is InfinityBackbone
    assert (files.cfg, files.tau) == (3.0, 0.1)


def test_what_converting_wrote_outlives_the_name(folder, tmp_path):
    convert(folder / "8B-512.safetensors", tmp_path / "x.safetensors", facts=facts)
    convert(folder / "own.safetensors", tmp_path / "y.safetensors", facts=facts)
    own, target = str(folder / "own.safetensors"), str(tmp_path / "z.safetensors")
    cli.main(["convert", own, target, "--family", VAREDIT])

    found = [family_of(open_tensors(tmp_path / f"{name}.safetensors")) for name in "xyz"]

    assert [(one.name, one.area) for one in found] == [(VAREDIT, "0.25M"), (INFINITY, None), (VAREDIT, None)]
    assert found[0].reason == "as is written in it"


def test_the_maps_tell_nsarm_and_nothing_else_is_taken_for_it(folder, tmp_path):
    path, model = tmp_path / "nsarm.safetensors", tiny_enlarge()
    save_file(model.transformer.state_dict(), path, {HEADS_KEY: ",".join(map(str, MAPS.heads))})
    save_file(released_vae_state(model.vae), tmp_path / "vae.safetensors")

    assert isinstance(load_infinity(path, tmp_path / "vae.safetensors"), EnlargeBackbone)
    with pytest.raises(CheckpointError, match="holds the tensors .* cannot be run as VAREdit"):
        family_of(open_tensors(path), VAREDIT)
    with pytest.raises(CheckpointError, match="lacks the tensors .* cannot be run as NSARM"):
        family_of(open_tensors(folder / "own.safetensors"), NSARM)
    with pytest.raises(CheckpointError, match="'Flux' is unknown; choose one of Infinity, VAREdit, NSARM"):
        family_of(open_tensors(path), "Flux")


def test_maps_without_known_heads_are_refused(tmp_path):
    model = tiny_enlarge()
    save_file(model.transformer.state_dict(), tmp_path / "nsarm.safetensors")
    save_file(released_vae_state(model.vae), tmp_path / "vae.safetensors")

    with pytest.raises(CheckpointError, match="not known here"):
        load_infinity(tmp_path / "nsarm.safetensors", tmp_path / "vae.safetensors")


@pytest.mark.parametrize("name", ["infinitystar_8b_480p_weights.safetensors", "InfinityStar/vae.safetensors"])
def test_infinitystar_is_refused_by_name(folder, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "own.safetensors", path)

    with pytest.raises(CheckpointError, match="InfinityStar, a video model"):
        load_infinity(path, folder / "vae.safetensors")
    assert "of InfinityStar" in report([folder])


def test_doctor_and_names_know_the_releases(folder):
    text = report([folder])

    assert "taken for VAREdit by its name" in text and "taken for Infinity because nothing marks it" in text
    assert "nsarm: missing NSARM.pth" in text
    with pytest.raises(CheckpointError, match="varedit-2b-512 is incomplete.*2B-512.pth.*HiDream-ai/VAREdit"):
        find_model("VAREdit-2B-512", [folder])


def test_commands_without_a_picture_refuse_such_a_model(folder, capsys):
    assert cli.main(["generate", "a cat", "--model", str(folder / "8B-512.safetensors")]) == 2
    assert "draws from a picture as well as from words" in capsys.readouterr().err
