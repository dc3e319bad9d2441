"""Pictures in, inside a real ComfyUI: the nodes draw what the command line draws, by the host's masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from graphs import Graph, node
from hosting import Host, checkout
from PIL import Image

from comfy_moss import cli

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        checkout() is None, reason="NO COMFYUI CHECKOUT: NO PICTURE WENT IN; set COMFYUI_PATH to one"
    ),
]
SHOWN, WANTED = "a green star on a plain grey background", "a red star on a plain grey background"
QUICK = {"area": "0.06M"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Host() as host:
        picture = host.base / "input" / "star.png"
        words = ["generate", SHOWN, "--method", "dense", "--pixels", "0.06M", "-o", str(picture)]
        assert cli.main(words) == 0
        with Image.open(picture) as star:
            painted = star.convert("RGBA")
        alpha = np.full((painted.height, painted.width), 255, np.uint8)
        alpha[: painted.height // 2] = 0  # what the mask editor leaves transparent is its mask
        painted.putalpha(Image.fromarray(alpha))
        painted.save(host.base / "input" / "painted.png")
        Image.fromarray(255 - alpha).save(host.base / "mask.png")
        yield host


def graph(image: str, start: dict[str, Any], edit: dict[str, Any] | None = None) -> Graph:
    """Load a picture, start from it, perhaps edit, and refine it by sparse3."""
    usual = {
        "strength": 3, "refine_scales": 3, "seed": 0, "cfg": 0, "tau": 0, "fit": "crop", "preview": False,
    }
    wires = {"model": ["load", 0], "image": ["image", 0], "positive": ["wanted", 0]}
    source = "edit" if edit is not None else "start"
    found = {
        "load": graphs.draft()["load"], "image": node("LoadImage", image=image),
        "wanted": node("CLIPTextEncode", clip=["load", 1], text=WANTED),
        "shown": node("CLIPTextEncode", clip=["load", 1], text=SHOWN),
        "start": node("MoSs_ImageToDraft", **{**wires, **usual, **QUICK, **start}),
        "frequency": node("MoSs_FrequencyMap", draft=[source, 0], window=3),
        "dispatch": node(
            "MoSs_TokenDispatch", frequency=["frequency", 0], preset="custom bounds", values="45",
            painting="", scales="-1",
        ),
        "refine": node(
            "MoSs_Refine", draft=[source, 0], dispatch=["dispatch", 0], cross_scale_attention=True,
            guidance=False, backend="auto",
        ),
        "composite": node("MoSs_Composite", draft=[source, 0], residual=["refine", 0], strength=1.0),
        **graphs.saved("moss", ["composite", 0]),
    }
    if edit is not None:
        settings = {"preserve": 2, "follow": 7, "rule": "gate", "gate": 0.2, "found": 0.25, "preview": False}
        found["edit"] = node(
            "MoSs_EditDraft", draft=["start", 0], positive=["wanted", 0], source=["shown", 0],
            **{**settings, **edit},
        )
    return found


def drawn(host: Host, asked: Graph, name: str = "save_moss") -> np.ndarray:
    result = host.run(asked)
    assert result["status"]["status_str"] == "success", result["status"]
    file = host.base / "output" / result["outputs"][name]["images"][0]["filename"]
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def typed(host: Host, folder: Path, *options: str) -> np.ndarray:
    words = ["edit", str(host.base / "input" / "star.png"), WANTED, "--pixels", "0.06M", *options]
    assert cli.main([*words, "-o", str(folder / "a.png")]) == 0
    with Image.open(folder / "a.png") as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_redrawing_is_the_command_lines(host: Host, tmp_path: Path) -> None:
    assert abs(drawn(host, graph("star.png", {})) - typed(host, tmp_path, "--strength", "3")).max() <= 1


def test_inpainting_a_painted_mask_is_the_command_lines(host: Host, tmp_path: Path) -> None:
    ours = drawn(host, graph("painted.png", {"strength": 0, "mask": ["image", 1]}))
    theirs = typed(host, tmp_path, "--mask", str(host.base / "mask.png"))
    assert abs(ours - theirs).max() <= 1


def test_an_edit_by_words_is_the_command_lines(host: Host, tmp_path: Path) -> None:
    ours = drawn(host, graph("star.png", {"strength": 13, "positive": ["shown", 0]}, {}))
    assert abs(ours - typed(host, tmp_path, "--source", SHOWN)).max() <= 1


def test_outpainting_takes_the_hosts_padding(host: Host) -> None:
    asked = graph("star.png", {"strength": 0, "image": ["pad", 0], "mask": ["pad", 1]})
    sides = {"left": 64, "right": 64, "top": 0, "bottom": 0, "feathering": 0}
    asked["pad"] = node("ImagePadForOutpaint", image=["image", 0], **sides)
    picture = drawn(host, asked)
    assert picture.shape[1] > 1.5 * picture.shape[0]


def test_an_unpainted_mask_is_told_in_a_sentence(host: Host) -> None:
    result = host.run(graph("star.png", {"mask": ["image", 1]}))
    error = next(data for kind, data in result["status"]["messages"] if kind == "execution_error")
    assert "mask" in error["exception_message"] and error["node_type"] == "MoSs_ImageToDraft"


def test_the_batch_of_a_batch_draws_as_many(host: Host) -> None:
    asked = graph("star.png", {"image": ["two", 0]})
    asked["two"] = node("RepeatImageBatch", image=["image", 0], amount=2)
    result = host.run(asked)
    assert len(result["outputs"]["save_moss"]["images"]) == 2
